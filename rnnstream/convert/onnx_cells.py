"""The recurrent operators of ONNX, and its activations: onnx/docs/Operators.md, RNN, GRU and LSTM.

T tokens    B rows of a batch    K inputs    H size of the layer    G gates
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnstream.convert.gates import cell
from rnnstream.convert.onnx_axes import features
from rnnstream.convert.onnx_graph import RECURRENT, Node, attributes

if TYPE_CHECKING:
    from rnnstream.convert.onnx_walk import Walk

PLAIN = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "softplus": "softplus",
    "softsign": "softsign",
    "exp": "exponential",
}
DEFAULTS = {  # of the attributes alpha, beta and gamma
    "hardsigmoid": {"alpha": 0.2, "beta": 0.5},
    "elu": {"alpha": 1.0},
    "selu": {"alpha": 1.6732632, "gamma": 1.0507010},
    "swish": {"alpha": 1.0},
}
SHAPED = (
    ("hardsigmoid", (1 / 6, 0.5), "hard_sigmoid"),
    ("hardsigmoid", (0.2, 0.5), "hard_sigmoid_fifth"),
    ("elu", (1.0,), "elu"),
    ("selu", (1.6732632, 1.0507010), "selu"),
    ("swish", (1.0,), "silu"),
)
TAKES = {  # how many numbers of activation_alpha and activation_beta a function of a recurrent operator uses up
    "affine": (1, 1),
    "leakyrelu": (1, 0),
    "thresholdedrelu": (1, 0),
    "scaledtanh": (1, 1),
    "hardsigmoid": (1, 1),
    "elu": (1, 0),
}
ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}  # where none are named


def function_of(name: str, said: dict[str, Any]) -> str | None:
    """Our name of an activation with these attributes; None where there is none."""
    name = name.lower()  # a recurrent operator's are compared without case
    if name in PLAIN:
        return PLAIN[name]
    numbers = {key: said.get(key, default) for key, default in DEFAULTS.get(name, {}).items()}
    for theirs, shape, ours in SHAPED:
        if name == theirs and np.allclose(list(numbers.values()), shape, rtol=1e-6, atol=0):
            return ours
    return None


def recurrent(walk: Walk, node: Node) -> None:
    """A recurrent node as a layer of the chain."""
    place, said, kind = walk.end(node), attributes(node), RECURRENT[node.op_type]
    _check(walk, node, said)
    functions = _functions(walk, node, said)
    roles, axes = walk.roles, place.axes
    if not (roles.is_tokens(axes, 0) and roles.is_rows(axes, 1) and roles.is_features(axes, 2)):
        raise walk.refused(node, "works on axes that are not tokens, rows and features, in this order.")
    for number, what in ((5, "initial_h"), (6, "initial_c"))[: 2 if kind == "lstm" else 1]:
        _check_initial(walk, node, number, what)
    w, r = walk.constant(node, 1), walk.constant(node, 2)  # [1, G * H, K], [1, G * H, H]
    size = said.get("hidden_size", r.shape[2])
    if size != r.shape[2]:
        raise walk.refused(node, f"has a hidden_size of {size}, and matrices of {r.shape[2]}.")
    part = cell(
        node.output[0] or node.output[1],
        "onnx",
        kind,
        kernel=w[0],
        recurrent=r[0],
        bias=walk.optional(node, 3),
        reset=said.get("linear_before_reset", 0) if kind == "gru" else None,
        activation=functions[-1],
        **({"gate": functions[0]} if kind != "rnn" else {}),
    )
    walk.add(node, part, place, (axes[0], (), axes[1], features(size)))
    if len(node.output) > 1 and node.output[1] and not place.tail:  # Y_h [1, B, H], the last of Y [T, 1, B, H]
        walk.add_last(node.output[1], place, ((), axes[1], features(size)))


def _check(walk: Walk, node: Node, said: dict[str, Any]) -> None:
    """What cannot be streamed, or no layer here does."""
    if said.get("direction", "forward") != "forward":
        raise walk.refused(node, f"is {said['direction']}: it needs the end of the sequence first, and cannot be streamed.")
    if said.get("clip"):
        raise walk.refused(node, f"clips its gates at {said['clip']:g}, which no layer here does.")
    if said.get("input_forget"):
        raise walk.refused(node, "couples its input and forget gates (input_forget), which no layer here does.")
    if len(node.input) > 7 and node.input[7]:
        raise walk.refused(node, "has peepholes (its input P), which no layer here has.")
    lens = walk.optional(node, 4)
    if lens is not None and (lens != walk.shape_of(node.input[0])[0]).any():
        raise walk.refused(node, f"takes sequences of different lengths (sequence_lens {lens.tolist()}).")


def _functions(walk: Walk, node: Node, said: dict[str, Any]) -> list[str]:
    """Our names of its activations, gates first; alphas and betas are used up in order, as ONNX Runtime does."""
    names = said.get("activations") or ACTIVATIONS[node.op_type]
    given = [list(said.get(f"activation_{key}") or []) for key in ("alpha", "beta")]
    aligned = [[*numbers] if len(numbers) == len(names) else None for numbers in given]
    found = []
    for place, name in enumerate(names):
        numbers: dict[str, float] = {}
        for key, count, left, other in zip(("alpha", "beta"), TAKES.get(name.lower(), (0, 0)), given, aligned, strict=True):
            if count and left:
                numbers[key] = left.pop(0)
                if other is not None and other[place] != numbers[key]:
                    raise walk.refused(node, f"has activation_{key} {other}; which of these belongs to {name} is not clear.")
        function = function_of(name, numbers)
        if function is None:
            raise walk.refused(node, f"has the activation {name}{numbers or ''}, which no layer here has.")
        found.append(function)
    if len(found) != len(ACTIVATIONS[node.op_type]):
        raise walk.refused(node, f"has {len(found)} activations: {', '.join(names)}.")
    if node.op_type == "LSTM" and found[1] != found[2]:
        raise walk.refused(node, f"has {names[1]} for its candidate and {names[2]} for its output; here the two are the same.")
    return found


def _check_initial(walk: Walk, node: Node, number: int, what: str) -> None:
    """The state before the first token is zero: absent, computed as zeros, or a state that is handed in."""
    if len(node.input) <= number or not node.input[number]:
        if not walk.roles.tokens:
            raise walk.refused(node, f"works on one token and takes no state ({what}), so that it remembers nothing.")
        return
    name = node.input[number]
    depends = walk.depends.get(name, set())
    if walk.graph.start in depends:
        raise walk.refused(node, f"begins at a state ({what}) that is computed from the input; here it begins at zero.")
    if np.any(walk.values[name]):
        raise walk.refused(node, f"begins at a state ({what}) that is not zero; a chain out of an ONNX graph begins at zero.")
    if not walk.roles.tokens and not depends:
        raise walk.refused(node, f"works on one token and begins at zero each time ({what}), so that it remembers nothing.")
