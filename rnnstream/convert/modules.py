"""The modules of a PyTorch state_dict, found by the names and shapes of their tensors, and the order in which they stand.

G gates of a cell    H its size    K inputs    N outputs    V ids
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from rnnstream.convert.arrays import some
from rnnstream.convert.hints import TENSORS
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l(\d+))?(_reverse)?")
CELLS = {1: "rnn", 3: "gru", 4: "lstm"}  # by gates: weight_hh is [G * H, H]
EMBEDDINGS = {"emb", "embed", "embedding", "embeddings"}  # words of the name of a matrix without a bias that is a table
MOST_ORDERED = 6  # modules whose orders are tried out: 720 of them

# What an entry of `layers` may say beside `from`, the tensors and `kind`.
KEYS = {
    "rnn": {"activation"},
    "gru": set(),
    "lstm": set(),
    "embedding": set(),
    "linear": {"activation"},
    "conv": {"activation", "causal", "dilation"},
    "batchnorm": {"activation", "epsilon"},
    "layernorm": {"activation", "epsilon"},
    "activation": {"activation"},
    "pool": {"pool", "window"},
    "residual": {"residual"},
}


BARE = {"activation": {"activation"}, "pool": {"pool", "window"}, "residual": {"residual"}}  # no tensors, and what they say


@dataclass
class Module:
    """One step of the chain as PyTorch has it.

    Attributes:
        name: as in the state_dict, without the tensor.
        kind: a key of `KEYS`.
        tensors: by their last names: weight, bias, weight_ih_l0, running_mean, ...
        said: the other keys of its entry in --spec.
    """

    name: str
    kind: str
    tensors: dict[str, Array] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """K; V of an embedding."""
        if self.kind == "batchnorm":
            return len(self.tensors["running_mean"])
        matrix = self.tensors.get("weight", next(iter(self.tensors.values())))
        if self.kind in CELLS.values():
            matrix = next(tensor for name, tensor in sorted(self.tensors.items()) if name.startswith("weight_ih"))
        return matrix.shape[0 if self.kind == "embedding" else 1 if matrix.ndim > 1 else 0]

    @property
    def outputs(self) -> int:
        """N or H."""
        if self.kind in CELLS.values():
            return next(tensor for name, tensor in self.tensors.items() if name.startswith("weight_hh")).shape[1]
        if self.kind == "batchnorm":
            return self.inputs
        return self.tensors["weight"].shape[1 if self.kind == "embedding" else 0]

    def line(self) -> str:
        """For people."""
        size = f"{self.inputs} -> {self.outputs}"
        return f'{self.kind} "{self.name}" {size}'


def modules(arrays: dict[str, Array]) -> list[Module]:
    """The modules whose tensors these are, in the order of the file.

    Raises:
        ModelError: a tensor belongs to nothing that is known here, or is one that cannot be streamed.
    """
    groups: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        groups.setdefault(module, {})[leaf] = array
    return [Module(name, kind_of(name, tensors), tensors) for name, tensors in groups.items()]


def _check_leaves(name: str, tensors: dict[str, Array]) -> None:
    """Refuse a module with a tensor that is none of PyTorch's, or of a layer that cannot be streamed."""
    called = name or "The module"
    for leaf, tensor in tensors.items():
        found = RECURRENT.fullmatch(leaf)
        full = f"{name}.{leaf}" if name else leaf
        if found and found[4]:
            raise ModelError(f"{called} is bidirectional ({full}): it reads the future, which a stream does not have.")
        if found and found[2] == "hr":
            raise ModelError(f"{called} is an LSTM with projections (proj_size, {full}), which is not supported.")
        if not found and leaf not in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            raise ModelError(
                f"The tensor {full} {list(tensor.shape)} belongs to no module that is known here; `layers` in --spec says what "
                "it is, `ignore` leaves it out."
            )
        if found and not found[3] and f"{leaf}_l0" in tensors:
            raise ModelError(f"{called} has {leaf} twice: as a cell, and as a stack of layers ({leaf}_l0).")
    if any(RECURRENT.fullmatch(leaf) for leaf in tensors):
        for leaf in tensors:
            if not RECURRENT.fullmatch(leaf):
                raise ModelError(f"{called} is a cell with the tensor {leaf}, which PyTorch's cells do not have.")


def kind_of(name: str, tensors: dict[str, Array]) -> str:
    """What a module is, by the names and shapes of its tensors.

    Raises:
        ModelError: they are those of none.
    """
    _check_leaves(name, tensors)
    if any(RECURRENT.fullmatch(leaf) for leaf in tensors):
        for needed in ("weight_ih", "weight_hh"):
            if not any(leaf.startswith(needed) for leaf in tensors):
                raise ModelError(f"{name or 'The cell'}: the tensor {needed} is missing.")
        for leaf, tensor in tensors.items():
            if leaf.startswith("weight_ih") and tensor.ndim != 2:
                raise ModelError(f"{name}.{leaf} has the shape {list(tensor.shape)}; it is a matrix.")
        leaf, tensor = next((leaf, tensor) for leaf, tensor in tensors.items() if leaf.startswith("weight_hh"))
        gates, rest = divmod(tensor.shape[0], tensor.shape[-1]) if tensor.ndim == 2 else (0, 0)
        if rest or gates not in CELLS:
            raise ModelError(f"{name}.{leaf} is {list(tensor.shape)}; a cell's is [H, H], [3H, H] or [4H, H].")
        return CELLS[gates]
    if "running_mean" in tensors:
        return "batchnorm"
    if "weight" not in tensors:
        raise ModelError(f"The module {name} has {', '.join(tensors)} and no weight: a tensor is missing.")
    dimensions = tensors["weight"].ndim
    if dimensions not in (1, 2, 3):
        raise ModelError(f"{name}.weight has the shape {list(tensors['weight'].shape)}, which no layer of a chain has.")
    if dimensions == 1:
        raise ModelError(
            f"{name} has only a vector of weights: a layer normalisation, or something else that is not known here. Where it "
            f'is one, say so in --spec: layers = [..., {{from = "{name}", kind = "layernorm"}}, ...]'
        )
    if dimensions == 2 and "bias" not in tensors and EMBEDDINGS & set(re.split("[^a-z]+", name.lower())):
        return "embedding"
    return {2: "linear", 3: "conv"}[dimensions]


def said_order(arrays: dict[str, Array], entries: list[dict[str, Any]]) -> tuple[list[Module], set[str]]:
    """The modules as `layers` in --spec has them, and the names of the tensors that they use.

    Raises:
        ModelError: an entry names what is not there, or has a key that does not go with it.
    """
    chain, used = [], set[str]()
    for place, entry in enumerate(entries):
        where = f"layers[{place}]"
        roles = {role: entry[role] for role in TENSORS if role in entry}
        if "from" in entry and roles:
            raise ModelError(f"{where} names a module with `from`, and tensors one by one; it takes one or the other.")
        if "from" in entry:
            prefix = f"{entry['from']}." if entry["from"] else ""
            names = {
                name.removeprefix(prefix): name
                for name in arrays
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            if not names:
                there = sorted({name.rpartition(".")[0] for name in arrays})
                raise ModelError(f"{where}: there is no module {entry['from']!r:.60}; these are there: {', '.join(there)}.")
        else:
            names = roles
        for name in names.values():
            if name not in arrays:
                raise ModelError(f"{where}: there is no tensor {name!r:.60}; these are there: {some(sorted(arrays))}.")
        used |= set(names.values())
        tensors = {leaf: arrays[name] for leaf, name in names.items()}
        name = entry.get("from") or next(iter(names.values()), "")
        kind = _kind(name, tensors, entry, where)
        said = {key: value for key, value in entry.items() if key not in ("from", "kind", *TENSORS)}
        for key in said:
            if key not in KEYS[kind]:
                raise ModelError(
                    f"{where} is {kind} and says {key!r}; that takes {', '.join(sorted(KEYS[kind])) or 'no keys'}."
                )
        chain.append(Module(name, kind, tensors, said))
    return chain, used


def _kind(name: str, tensors: dict[str, Array], entry: dict[str, Any], where: str) -> str:
    """The kind of an entry: what it says, held against its tensors, or what these are."""
    said = entry.get("kind")
    if said is not None and said not in KEYS:
        raise ModelError(f"{where}.kind is {said!r:.60}; it is one of {', '.join(KEYS)}.")
    if not tensors:
        kind = said or next((kind for kind in BARE if kind in entry), None)
        if kind not in BARE:
            raise ModelError(f"{where} says neither `from`, nor tensors, nor one of `activation`, `pool`, `residual`.")
        for key in sorted(BARE[kind] - set(entry)):
            raise ModelError(f"{where} is {kind} and does not say {key!r}.")
        return kind
    if said == "layernorm" and "weight" in tensors and tensors["weight"].ndim == 1:
        _check_leaves(name, tensors)
        return said
    found = kind_of(name, tensors)
    if said not in (None, found) and {said, found} != {"linear", "embedding"}:
        raise ModelError(f"{where} says that {name} is {said}; by its tensors ({', '.join(tensors)}) it is {found}.")
    return said or found


def guessed_order(found: list[Module]) -> list[Module]:
    """The only order in which these modules fit together, where it is safe to say so.

    Safe are an embedding in front, one stack of cells, and one linear layer behind, where sizes leave no other order: nothing
    else stands between those as a rule. The stack may be a list, modules that differ by nothing but a number in their names.

    Raises:
        ModelError: there is none, or more than one, or something could stand between; the sentence has what --spec asks for.
    """
    found = [_embedding_or_linear(module, found) for module in found]
    kinds = [module.kind for module in found]
    recurrent = [kind for kind in kinds if kind in CELLS.values()]
    plain = (
        set(kinds) <= {"embedding", "linear", *CELLS.values()} and kinds.count("embedding") <= 1 and kinds.count("linear") <= 1
    )
    one_list = len({re.sub(r"\d+", "#", module.name) for module in found if module.kind in CELLS.values()}) == 1
    if recurrent and plain and one_list and len(found) <= MOST_ORDERED:
        fitting = [list(order) for order in itertools.permutations(found) if _fits(order)]
        if len(fitting) == 1 and (fitting[0][-1].kind == "linear" or "linear" not in kinds):
            return fitting[0]
    found.sort(key=lambda module: (module.kind != "embedding", [int(n) for n in re.findall(r"\d+", module.name)]))
    template = ", ".join(f'{{from = "{module.name}"}}' for module in found)
    raise ModelError(
        f"The file does not say how its parts follow one another, nor what stands between them: "
        f"{'; '.join(module.line() for module in found)}. Write it down and pass it with `rnnstream convert --spec`, in the "
        f'right order and with {{activation = "relu"}} and the like where they belong: layers = [{template}]'
    )


def _embedding_or_linear(module: Module, found: list[Module]) -> Module:
    """A matrix without a bias is an embedding if only that fits in front of the cells."""
    if module.kind != "linear" or "bias" in module.tensors:
        return module
    rows, columns = module.tensors["weight"].shape
    cells = [cell for cell in found if cell.kind in CELLS.values()]
    in_front, behind = any(cell.inputs == columns for cell in cells), any(cell.outputs == columns for cell in cells)
    if in_front and not behind and all(cell.inputs != rows for cell in cells):
        return Module(module.name, "embedding", module.tensors)
    if in_front and behind:
        raise ModelError(
            f"{module.name}.weight {[rows, columns]} has no bias and may be an embedding or a linear layer; `layers` in --spec "
            f'says which: {{from = "{module.name}", kind = "embedding"}}, among the others in their order.'
        )
    return module


def _fits(order: tuple[Module, ...]) -> bool:
    if any(module.kind == "embedding" for module in order[1:]):
        return False
    return all(one.outputs == other.inputs for one, other in itertools.pairwise(order))


def refuse_unused(arrays: dict[str, Array], used: set[str]) -> None:
    """Refuse tensors that nothing uses.

    Raises:
        ModelError: there are some.
    """
    if unused := [name for name in arrays if name not in used]:
        raise ModelError(
            f"Nothing uses the tensors {some(unused)}. Put them into `layers` in --spec, or on `ignore` to leave them out."
        )
