"""The modules of a PyTorch state_dict, found by the names and shapes of their tensors, and the order in which they stand.

G gates of a cell    H its size    K inputs    N outputs    V ids
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from rnnstream.convert.hints import TENSORS, Hints
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l(\d+))?(_reverse)?")
CELLS = {1: "rnn", 3: "gru", 4: "lstm"}  # by gates: weight_hh is [G * H, H]
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
        matrix = self.tensors.get("weight", next(iter(self.tensors.values())))
        if self.kind in CELLS.values():
            matrix = next(tensor for name, tensor in sorted(self.tensors.items()) if name.startswith("weight_ih"))
        return matrix.shape[0 if self.kind == "embedding" else 1 if matrix.ndim > 1 else 0]

    @property
    def outputs(self) -> int:
        """N or H."""
        if self.kind in CELLS.values():
            return next(tensor for name, tensor in self.tensors.items() if name.startswith("weight_hh")).shape[1]
        weight = self.tensors.get("weight", next(iter(self.tensors.values())))
        return weight.shape[1 if self.kind == "embedding" else 0]

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
        found = RECURRENT.fullmatch(leaf)
        if found and found[4]:
            raise ModelError(f"{module or leaf} is bidirectional ({name}): it reads the future, which a stream does not have.")
        if found and found[2] == "hr":
            raise ModelError(f"{module or leaf} is an LSTM with projections (proj_size, {name}), which is not supported.")
        if not found and leaf not in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            raise ModelError(
                f"The tensor {name} {list(array.shape)} belongs to no module that is known here; `layers` in --spec says what "
                "it is, `ignore` leaves it out."
            )
        groups.setdefault(module, {})[leaf] = array
    return [Module(name, kind_of(name, tensors), tensors) for name, tensors in groups.items()]


def kind_of(name: str, tensors: dict[str, Array]) -> str:
    """What a module is, by the names and shapes of its tensors.

    Raises:
        ModelError: they are those of none.
    """
    if any(RECURRENT.fullmatch(leaf) for leaf in tensors):
        for leaf, tensor in tensors.items():
            if leaf.startswith("weight_hh"):
                gates, rest = divmod(tensor.shape[0], tensor.shape[-1]) if tensor.ndim == 2 else (0, 0)
                if rest or gates not in CELLS:
                    raise ModelError(f"{name}.{leaf} is {list(tensor.shape)}; a cell's is [H, H], [3H, H] or [4H, H].")
                return CELLS[gates]
        raise ModelError(f"The tensor weight_hh of {name} is missing.")
    if "running_mean" in tensors:
        return "batchnorm"
    if "weight" not in tensors:
        raise ModelError(f"The module {name} has {', '.join(tensors)} and no weight: a tensor is missing.")
    dimensions = tensors["weight"].ndim
    if dimensions not in (1, 2, 3):
        raise ModelError(f"{name}.weight has the shape {list(tensors['weight'].shape)}, which no layer of a chain has.")
    if dimensions == 2 and "bias" not in tensors and "emb" in name.lower():
        return "embedding"
    return {1: "layernorm", 2: "linear", 3: "conv"}[dimensions]


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
                raise ModelError(f"{where}: there is no tensor {name!r:.60}; these are there: {_some(sorted(arrays))}.")
        used |= set(names.values())
        tensors = {leaf: arrays[name] for leaf, name in names.items()}
        name = entry.get("from") or next(iter(names.values()), "")
        if tensors:
            modules({f"{name}.{leaf}" if "from" in entry else leaf: tensor for leaf, tensor in tensors.items()})  # known ones?
        kind = entry.get("kind") or (kind_of(name, tensors) if tensors else _without_tensors(entry, where))
        if kind not in KEYS:
            raise ModelError(f"{where}.kind is {kind!r:.60}; it is one of {', '.join(KEYS)}.")
        said = {key: value for key, value in entry.items() if key not in ("from", "kind", *TENSORS)}
        for key in said:
            if key not in KEYS[kind]:
                raise ModelError(
                    f"{where} is {kind} and says {key!r}; that takes {', '.join(sorted(KEYS[kind])) or 'no keys'}."
                )
        chain.append(Module(name, kind, tensors, said))
    return chain, used


def _without_tensors(entry: dict[str, Any], where: str) -> str:
    for kind in ("activation", "pool", "residual"):
        if kind in entry:
            return kind
    raise ModelError(f"{where} says neither `from`, nor tensors, nor one of `activation`, `pool`, `residual`.")


def guessed_order(found: list[Module]) -> list[Module]:
    """The only order in which these modules fit together, where it is safe to say so.

    Safe are an embedding in front, recurrent modules, and one linear layer behind: nothing else stands between those as a
    rule. Modules that differ only by a number come in the order of their numbers.

    Raises:
        ModelError: there is none, or more than one, or something could stand between; the sentence has what --spec asks for.
    """
    found = [_embedding_or_linear(module, found) for module in found]
    kinds = [module.kind for module in found]
    recurrent = [kind for kind in kinds if kind in CELLS.values()]
    plain = (
        set(kinds) <= {"embedding", "linear", *CELLS.values()} and kinds.count("embedding") <= 1 and kinds.count("linear") <= 1
    )
    if recurrent and plain and len(found) <= MOST_ORDERED:
        fitting = [list(order) for order in itertools.permutations(found) if _fits(order)]
        if len(fitting) > 1:
            fitting = [order for order in fitting if _numbers(order) == sorted(_numbers(order))]
        if len(fitting) == 1:
            return fitting[0]
    template = ", ".join(f'{{from = "{module.name}"}}' for module in found)
    raise ModelError(
        f"The file does not say how its parts follow one another, nor what stands between them: "
        f"{'; '.join(module.line() for module in found)}. Write it down and pass it with --spec, in the right order and with "
        f'{{activation = "relu"}} and the like where they belong: layers = [{template}]'
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
    if any(module.kind == "embedding" for module in order[1:]) or any(module.kind == "linear" for module in order[:-1]):
        return False
    return all(one.outputs == other.inputs for one, other in itertools.pairwise(order))


def _numbers(order: list[Module]) -> list[list[int]]:
    return [[int(digits) for digits in re.findall(r"\d+", module.name)] for module in order if module.kind in CELLS.values()]


def left_over(arrays: dict[str, Array], used: set[str], said: Hints) -> None:
    """Refuse tensors that nothing uses.

    Raises:
        ModelError: there are some that `ignore` does not name, or a pattern of `ignore` names none.
    """
    for pattern in said.ignore:
        if not fnmatch.filter(arrays, pattern):
            raise ModelError(
                f"`ignore` has {pattern!r:.60}, and no tensor is called so; these are there: {_some(sorted(arrays))}."
            )
    unused = [name for name in arrays if name not in used and not ignored(name, said)]
    if unused:
        raise ModelError(
            f"Nothing uses the tensors {_some(unused)}. Put them into `layers` in --spec, or on `ignore` to leave them out."
        )


def ignored(name: str, said: Hints) -> bool:
    """Whether --spec says to leave this tensor out."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in said.ignore)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
