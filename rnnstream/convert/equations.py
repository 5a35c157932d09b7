"""Arrays with the names of the equations: waa, wax, wya, ba, by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert.hints import Hints
from rnnstream.convert.parts import Converted, Part, assemble, dense
from rnnstream.errors import ModelError
from rnnstream.model.activations import ACTIVATIONS

Array = npt.NDArray[Any]
NAMES = ("waa", "wax", "ba", "wya", "by")


def are_equations(arrays: dict[str, Array]) -> bool:
    """Whether these are a vanilla network by its equations."""
    return "waa" in arrays and "wax" in arrays


def network(arrays: dict[str, Array], said: Hints, name: str, notes: list[str]) -> Converted:
    """a<t> = tanh(waa a<t-1> + wax x<t> + ba), and y<t> = g2(wya a<t> + by) where there is a wya.

    Vectors may be columns [H, 1]. g1 is tanh unless the hints have one layer with another `activation`.

    Raises:
        ModelError: an array is missing or unknown, or shapes do not fit.
    """
    for found in sorted(arrays):
        if found not in NAMES:
            raise ModelError(
                f"There is an array {found} beside {', '.join(NAMES)}; put it on `ignore` in --spec to leave it out."
            )
    for needed in ("ba", *(("by",) if "wya" in arrays else ())):
        if needed not in arrays:
            raise ModelError(f"The array {needed} is missing; without a bias, save zeros.")
    if "by" in arrays and "wya" not in arrays:
        raise ModelError("There is by without wya: the output's matrix is missing.")
    flat = {key: array[:, 0] if key in ("ba", "by") and array.shape[1:] == (1,) else array for key, array in arrays.items()}
    g1 = "tanh"
    if said.layers is not None:
        if len(said.layers) != 1 or set(said.layers[0]) - {"kind", "activation"} or said.layers[0].get("kind", "rnn") != "rnn":
            raise ModelError("`layers` takes one table here, such as [{kind = 'rnn', activation = 'relu'}].")
        g1 = said.layers[0].get("activation", "tanh")
    else:
        notes.append("g1 is taken to be tanh; `layers = [{kind = 'rnn', activation = 'relu'}]` in --spec says otherwise.")
    waa, wax = flat["waa"], flat["wax"]
    if waa.ndim != 2 or waa.shape[0] != waa.shape[1] or wax.ndim != 2 or len(wax) != len(waa):
        raise ModelError(f"waa is {list(waa.shape)} and wax is {list(wax.shape)}; they are [H, H] and [H, V].")
    parts = [Part("rnn", {"size": len(waa), "activation": g1}, {key: flat[key] for key in ("waa", "wax", "ba")}, "rnn")]
    outputs = len(waa)
    if "wya" in flat:
        parts.append(dense("wya", flat["wya"], flat["by"]))
        outputs = len(flat["wya"])
    tokens = said.input == "token" or (said.input is None and wax.shape[1] == outputs)
    if said.input is None:
        same = "as many outputs as inputs" if tokens else "another number of outputs than of inputs"
        notes.append(f"there are {same}: x<t> is taken to be {'a token id' if tokens else 'a vector'}; `input` says otherwise.")
    head = said.head
    if head is None:
        head = "categorical" if tokens and wax.shape[1] == outputs else "linear"
        notes.append(f"g2 is taken to be {'softmax' if head == 'categorical' else 'identity'}; `head` says otherwise.")
    return assemble(
        parts,
        name=said.name or name,
        tokens=tokens,
        size=wax.shape[1],
        head=head,
        vocabulary=said.vocabulary,
        notes=notes,
    )


def run_source(arrays: dict[str, Array], converted: Converted, xs: Sequence[Any]) -> tuple[str, Array]:
    """The whole sequence by the two equations, in float64: (what ran, wya a<t> + by, or a<t> where there is no wya)."""
    w = {name: array.astype(float) for name, array in arrays.items()}
    g1 = ACTIVATIONS[converted.spec.layers[-2 if "wya" in w else -1].keys["activation"]]
    ids = converted.spec.input_kind == "token"
    a, outputs = np.zeros(len(w["waa"])), []
    for x in xs:
        z = w["waa"] @ a + (w["wax"][:, x] if ids else w["wax"] @ x) + w["ba"].reshape(-1)
        a = g1(z[np.newaxis])[0]
        outputs.append(w["wya"] @ a + w["by"].reshape(-1) if "wya" in w else a)
    return "the equations in float64", np.array(outputs)
