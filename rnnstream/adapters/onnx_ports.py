"""The arrays that go into a graph and come out: their shapes, and which axis has the rows, found out by running it.

B rows of a batch    S numbers of all states    K numbers of a token    V outputs
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.adapters.onnx_graph import Value
from rnnstream.adapters.onnx_run import run
from rnnstream.adapters.rows import TOLERANCE, difference
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

TRIAL_ROWS = 3  # of a batch that is tried: told from a single row, and from most sizes


@dataclass(frozen=True)
class Port:
    """An input or output of the graph, and what a row of it is.

    Attributes:
        name: in the graph.
        dtype: of its numbers.
        shape: for one row.
        axis: that of the rows; None: the graph takes one row.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axis: int | None = None

    @property
    def size(self) -> int:
        """Numbers of a row."""
        return math.prod(self.shape)

    def lay(self, rows: Array) -> Array:  # [B, size] -> shape, with B at the axis; a copy
        """Rows as the graph takes them."""
        array = rows.astype(self.dtype, order="C")
        if self.axis is None:
            return array.reshape(self.shape)
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return np.ascontiguousarray(np.moveaxis(array.reshape(len(rows), *rest), 0, self.axis))

    def rows(self, array: Array) -> Array:  # shape, with B at the axis -> [B, size]
        """What the graph gave, row by row."""
        if self.axis is None:
            return array.reshape(1, self.size)
        return np.moveaxis(array, self.axis, 0).reshape(-1, self.size)


@dataclass(frozen=True)
class Program:
    """A session of ONNX Runtime, and where a step's arguments and results are in it.

    Attributes:
        session: onnxruntime.InferenceSession.
        constants: inputs that are always the same.
        x: the token.
        states: the inputs.
        after: the outputs that are their next values.
        y: the output.
    """

    session: Any
    constants: dict[str, Array]
    x: Port
    states: tuple[Port, ...]
    after: tuple[Port, ...]
    y: Port

    def __call__(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, V]
        """One run; without a batch axis B is 1."""
        y, *after = self.session.run([self.y.name, *(port.name for port in self.after)], self.feed(states, inputs))
        return np.concatenate([port.rows(array) for port, array in zip(self.after, after, strict=True)], axis=1), self.y.rows(y)

    @property
    def state_size(self) -> int:
        """Numbers of all states of a row."""
        return sum(port.size for port in self.states)

    def feed(self, states: Array, inputs: Array) -> dict[str, Array]:  # [B, S], [B] or [B, K]
        """What the session takes in a run."""
        feed, start = dict(self.constants), 0
        for port in self.states:
            feed[port.name] = port.lay(states[:, start : start + port.size])
            start += port.size
        feed[self.x.name] = self.x.lay(inputs.reshape(len(inputs), -1))
        return feed


def token_shape(x: Value, size: int | None) -> tuple[int, ...]:
    """The shape of one token; of an id all ones.

    Raises:
        ModelError: the graph takes several ids at once, or does not give the size, or another one.
    """
    if x.dims is None or x.dtype is None:
        raise ModelError(f"The input {x} has no shape in the graph; export it with one.")
    fixed = [dim for dim in x.dims if isinstance(dim, int)]
    shape = [dim if isinstance(dim, int) else 1 for dim in x.dims]
    if x.dtype.kind != "f":
        if math.prod(fixed) > 1:
            raise ModelError(f"The input {x} takes {math.prod(fixed)} ids at once; a token is one. Export it for one.")
        return tuple(shape)
    if math.prod(fixed) == 1 and x.dims and not isinstance(x.dims[-1], int):
        if size is None:
            raise ModelError(
                f"The graph does not say how many numbers a token has: the input is {x}. Write size = ... in a spec."
            )
        shape[-1] = size
    if size is not None and math.prod(shape) != size:
        raise ModelError(f"`size` is {size}; the input {x} takes {math.prod(shape)} numbers.")
    return tuple(shape)


def settle(session: Any, constants: dict[str, Array], x: Port, states: Sequence[tuple[Value, Value]], y: str) -> Program:
    """A program for one row, whose states stay in shape from step to step.

    Sizes of a state that the graph leaves open are taken to be 1, or what comes out.

    Raises:
        ModelError: it does not run so, or a state changes its size.
    """
    ports = [_port(state) for state, _ in states]
    for _ in range(2):
        feed = {x.name: np.zeros(x.shape, x.dtype)} | {port.name: np.zeros(port.shape, port.dtype) for port in ports}
        first, *after = run(session, [y, *(value.name for _, value in states)], constants | feed)
        if first.dtype.kind != "f":
            raise ModelError(f"The output {y} is {first.dtype}; outputs are floating point numbers.")
        changed = [_changed(port, value, array) for port, (value, _), array in zip(ports, states, after, strict=True)]
        if changed == ports:
            outputs = [
                Port(value.name, port.dtype, array.shape) for port, (_, value), array in zip(ports, states, after, strict=True)
            ]
            return Program(session, constants, x, tuple(ports), tuple(outputs), Port(y, first.dtype, first.shape))
        grown = next(port for port, now in zip(ports, changed, strict=True) if port != now)
        ports = changed
    raise ModelError(
        f"The state {grown.name} grows with every token; a session's state has a fixed size. Export the step with a window "
        "of fixed length."
    )


def _port(state: Value) -> Port:
    if state.dtype is None or state.dtype.name not in ("float32", "float64"):
        raise ModelError(
            f"The state {state} is kept as part of a session's state vector, which is float32 or float64; export it as such."
        )
    if state.dims is None:
        raise ModelError(f"The state {state} has no shape in the graph; export it with one.")
    return Port(state.name, state.dtype, tuple(dim if isinstance(dim, int) else 1 for dim in state.dims))


def _changed(port: Port, value: Value, array: Array) -> Port:
    """The port as it is, or in the shape that came out where the graph leaves it open."""
    if array.dtype == port.dtype and [n for n in array.shape if n > 1] == [n for n in port.shape if n > 1]:
        return port
    assert value.dims is not None
    open_or_same = len(array.shape) == len(port.shape) and all(
        not isinstance(dim, int) or dim == n for dim, n in zip(value.dims, array.shape, strict=True)
    )
    if array.dtype != port.dtype or not open_or_same or not array.size:
        raise ModelError(
            f"The state {value} came out as {array.dtype} {list(array.shape)} after one step from {list(port.shape)}; "
            "a state keeps its type and its size."
        )
    return replace(port, shape=array.shape)


def with_batch(alone: Program, x: Value, states: Sequence[Value], tokens: Array) -> Program:  # tokens [TRIAL_ROWS] or [.., K]
    """The program for any number of rows: the first reading of the open axes in which rows of a batch are the rows alone.

    Raises:
        ModelError: there is none.
    """
    rng = np.random.default_rng(0)
    before = rng.normal(0, 0.1, (TRIAL_ROWS, sum(port.size for port in alone.states)))
    parts = [alone(before[row : row + 1], tokens[row : row + 1]) for row in range(TRIAL_ROWS)]
    wanted = [np.concatenate(part) for part in zip(*parts, strict=True)]
    for program in _readings(alone, x, states):
        try:
            found = program(before, tokens)
        except Exception:  # of NumPy or ONNX Runtime: these axes do not fit
            continue
        if all(f.shape == w.shape and difference(f, w) <= TOLERANCE for f, w in zip(found, wanted, strict=True)):
            return program
    raise ModelError(
        "`batch` asks for all rows of a batch in one call, and no axis was found that takes rows: the input is "
        f"{x}, the states are {', '.join(map(str, states))}. Export it with a dynamic batch axis, or leave `batch` out."
    )


def _readings(alone: Program, x: Value, states: Sequence[Value]) -> Iterator[Program]:
    """Open axes of the token with open axes of the states, those of the same name first; and any axis of the output."""
    for axis in open_axes(x, alone.x):
        for choice in range(max(len(port.shape) for port in alone.states)):
            axes = []
            for value, port in zip(states, alone.states, strict=True):
                free = open_axes(value, port)
                assert x.dims is not None
                assert value.dims is not None
                named = [a for a in free if x.dims[axis] and value.dims[a] == x.dims[axis]]
                axes += (named or free[choice:] or free[-1:])[:1]
            if len(axes) < len(states):
                return
            for y_axis in range(len(alone.y.shape)):
                yield replace(
                    alone,
                    x=replace(alone.x, axis=axis),
                    states=tuple(replace(port, axis=a) for port, a in zip(alone.states, axes, strict=True)),
                    after=tuple(replace(port, axis=a) for port, a in zip(alone.after, axes, strict=True)),
                    y=replace(alone.y, axis=y_axis),
                )


def open_axes(value: Value, port: Port) -> list[int]:
    """The axes that the graph leaves open and that are 1 for one row."""
    assert value.dims is not None
    return [axis for axis, dim in enumerate(value.dims) if not isinstance(dim, int) and port.shape[axis] == 1]
