"""A module of PyTorch that makes one step as a step model.

    B rows of a batch    S numbers of all states    K numbers of a token    V outputs

A row's state vector is the module's state tensors one after the other, each flattened.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.adapters.rows import RowModel
from rnnstream.errors import ModelError
from rnnstream.model.step import Input, Output

Array = npt.NDArray[Any]

_MANGLED = re.compile(rb"\.___torch_mangle_\d+")  # in the name of a type: how many of that name the process had before
_FINAL = re.compile(rb"(?m)^  \S+ : Final\[.*\n")


class TorchStep(RowModel):
    """A torch.nn.Module, or a torch.jit.ScriptModule, with (input, state) -> (output, state), on the CPU.

    The module is put into its eval mode, and has to be a function of its arguments: the state that comes back is all that it
    keeps. It gets int64 ids [B] or floating point numbers [B, K], and gives logits [B, V].

    PyTorch's number of threads belongs to the whole process. Unless `batch` is true, the first step sets it to 1, where it
    stays: with more, the bits could differ.

    Args:
        module: its parameters must not change any more.
        input: which tokens it takes.
        output: what its outputs are; the module gives logits, softmax and sigmoid are made of them here.
        state: the initial state of one row: a tensor, or tuples, lists and dicts of tensors, in whichever form the module takes
            and gives it. float32 or float64.
        batch_axis: of every tensor of the state, the axis of the rows: 0 for a cell's [B, H], 1 for the [layers, B, H] of
            torch.nn.GRU and LSTM.
        name: for people.
        batch: all rows of a batch go into one call: faster, and no longer exact. Otherwise each row has a call of its own.
        digest: what tells this model from any other. Absent, a SHA-256 over the parameters and buffers, what `repr` says of
            the module and, for a ScriptModule, its code and attributes. A Python module's code and plain attributes are not
            in it.

    Raises:
        ModelError: a first step does not go as it should; the sentence says what.
    """

    def __init__(
        self,
        module: Any,
        *,
        input: Input,
        output: Output,
        state: Any,
        batch_axis: int = 0,
        name: str = "",
        batch: bool = False,
        digest: str | None = None,
    ) -> None:
        self._torch = torch = _torch()
        self._module = module.eval()
        self._axis, self.batch = batch_axis, batch
        self.name, self.input, self.output = name, input, output
        self._form = state
        leaves = list(_leaves(state, torch))
        _check_state(leaves, batch_axis, torch)
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.device.type != "cpu":
                raise ModelError(f"The module is on {tensor.device}; TorchStep runs it on the CPU: pass module.cpu().")
        self._shapes = [tuple(leaf.shape) for leaf in leaves]
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._a0 = np.concatenate([leaf.detach().numpy().reshape(-1) for leaf in leaves])
        self.dtype, self.state_size = self._a0.dtype, len(self._a0)
        self._try()
        self.digest = digest or self._digest()
        self.layers = [
            f"{type(module).__name__} in PyTorch, " + ("rows together" if batch else "each row alone"),
            *(f"state {list(shape)}" for shape in self._shapes),
            f"{output.kind} head",
        ]
        threads = torch.get_num_threads()
        capability = torch.backends.cpu.get_cpu_capability()
        self.settle(f"torch {torch.__version__} {capability}, {threads} thread{'s' * (threads > 1)}")

    def initial_state(self) -> Array:  # -> [S]
        """The state that was given."""
        return self._a0.copy()

    def call(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, V]
        """One call of the module."""
        y, leaves = self._call(states, inputs)
        parts = [np.moveaxis(leaf.numpy(), self._axis, 0).reshape(len(states), -1) for leaf in leaves]
        return np.concatenate(parts, axis=1, dtype=self.dtype), y.double().numpy().astype(self.dtype)

    def _call(self, states: Array, inputs: Array) -> tuple[Any, list[Any]]:
        torch = self._torch
        if not self.batch and torch.get_num_threads() != 1:  # a thread that is new takes the process's number
            torch.set_num_threads(1)
        leaves, start = [], 0
        for shape, dtype in zip(self._shapes, self._dtypes, strict=True):
            rest, size = [*shape], int(np.prod(shape))
            del rest[self._axis]
            rows = states[:, start : start + size].reshape(len(states), *rest)
            # a copy, in memory of its own: the module may write into it
            leaves.append(torch.from_numpy(np.moveaxis(rows, 0, self._axis).copy()).to(dtype))
            start += size
        tokens = inputs.astype(np.int64 if self.input.kind == "token" else self.dtype)
        with torch.inference_mode():
            y, after = self._module(torch.from_numpy(tokens), _like(self._form, iter(leaves), torch))
            return y, list(_leaves(after, torch))

    def _try(self) -> None:
        """One step of one row, held against what was said."""
        try:
            found = self._call(self._a0[np.newaxis], self.input.batch([self.input.sample()]))
        except ModelError:
            raise
        except Exception as problem:  # the module's own code: whatever it raises
            raise ModelError(f"A first step failed: {type(problem).__name__}: {problem}") from problem
        y, leaves = found
        if not isinstance(y, self._torch.Tensor) or tuple(y.shape) != (1, self.output.size):
            got = list(y.shape) if isinstance(y, self._torch.Tensor) else f"a {type(y).__name__}"
            raise ModelError(f"The module gave an output {got} for one row; by `output` it is [1, {self.output.size}].")
        if not y.is_floating_point():
            raise ModelError(f"The module gave {y.dtype}; outputs are floating point numbers.")
        after = [(tuple(leaf.shape), leaf.dtype) for leaf in leaves]
        if after != (before := list(zip(self._shapes, self._dtypes, strict=True))):
            raise ModelError(f"The state was {_shown(before)} and came back as {_shown(after)}; it keeps its form.")

    def _digest(self) -> str:
        torch, hasher = self._torch, hashlib.sha256()
        if " at 0x" in repr(self._module):
            raise ModelError(
                "What repr says of the module has an address of memory in it, which is another one in every process; pass a "
                "`digest` of your own."
            )
        named = self._module.state_dict()  # which leaves out buffers that are not persistent
        named |= dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        for key, value in sorted(named.items()):
            if not isinstance(value, torch.Tensor) or value.is_quantized or value.layout != torch.strided:
                raise ModelError(f"{key} of the module's state_dict is no plain tensor; pass a `digest` of your own.")
            hasher.update(f"\0{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            hasher.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        code = [type(self._module).__qualname__, repr(self._module)]
        for script in _scripts(self._module, torch):
            for part in _parts(script):
                hasher.update(f"\0{len(part)}\0".encode() + part)
        of = [self.input.kind, self.input.size, self.input.vocabulary, self.output, self._shapes, self._axis, self.batch]
        hasher.update(repr((code, of)).encode())
        hasher.update(self._a0.tobytes())
        return hasher.hexdigest()


def _scripts(module: Any, torch: Any) -> Iterator[Any]:
    """The ScriptModules in a module that are in no other."""
    if isinstance(module, torch.jit.ScriptModule):
        yield module
    else:
        for child in module.children():
            yield from _scripts(child, torch)


def _parts(script: Any) -> Iterator[bytes]:
    """Attributes, constants and code of a ScriptModule, as it would be saved; the same in every process."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(script.save_to_buffer()))
    except RuntimeError as problem:
        raise ModelError(f"The ScriptModule cannot be saved, so pass a `digest` of your own: {problem}") from None
    classes: list[bytes] = []
    for name in sorted(archive.namelist()):
        content, inside = archive.read(name), name.partition("/")[2]
        if name.endswith(".py"):
            classes += map(_in_order, re.split(rb"(?m)^(?=class )", _MANGLED.sub(b"", content)))
        elif inside.startswith(("data", "constants")):  # the rest is example inputs, lines of the source, versions
            yield inside.encode()
            yield _MANGLED.sub(b"", content) if name.endswith(".pkl") else content
    yield from sorted(filter(None, classes))
    for part in script.modules():  # which of the classes that have one name is where
        if hasattr(part, "code"):
            yield _MANGLED.sub(b"", part.code.encode())


def _in_order(code: bytes) -> bytes:
    """A class of a ScriptModule, whose constants PyTorch writes in the order of a set, another one in every process."""
    return b"".join(sorted(_FINAL.findall(code))) + _FINAL.sub(b"", code)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ModelError("A module of PyTorch needs torch: pip install 'rnnstream[torch]'.") from None
    return torch


def _leaves(tree: Any, torch: Any) -> Iterator[Any]:
    """The tensors of a state, those of a dict in the order of its keys."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for entry in tree:
            yield from _leaves(entry, torch)
    elif isinstance(tree, dict):
        for key in sorted(tree):
            yield from _leaves(tree[key], torch)
    else:
        raise ModelError(f"There is a {type(tree).__name__} in the state; it is made of tensors, tuples, lists and dicts.")


def _like(form: Any, leaves: Iterator[Any], torch: Any) -> Any:
    """The tensors in the form of the initial state."""
    if isinstance(form, torch.Tensor):
        return next(leaves)
    if isinstance(form, dict):
        return {key: _like(form[key], leaves, torch) for key in sorted(form)}
    entries = [_like(entry, leaves, torch) for entry in form]
    make: Callable[..., Any] = type(form)
    return make(*entries) if hasattr(form, "_fields") else make(entries)


def _check_state(leaves: list[Any], axis: int, torch: Any) -> None:
    if not leaves:
        raise ModelError("The state has no tensor in it.")
    for leaf in leaves:
        if leaf.dtype not in (torch.float32, torch.float64):
            raise ModelError(f"There is a tensor of {leaf.dtype} in the state; a state is float32 or float64.")
        if not 0 <= axis < leaf.ndim or leaf.shape[axis] != 1:
            raise ModelError(
                f"There is a tensor {list(leaf.shape)} in the state; it is given for one row, so its axis {axis} has the size "
                "1. `batch_axis` says which axis has the rows."
            )
        if leaf.device.type != "cpu":
            raise ModelError(f"The state is on {leaf.device}; TorchStep runs on the CPU: pass it with .cpu().")


def _shown(forms: list[tuple[Any, Any]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}".removeprefix("torch.") for shape, dtype in forms)
