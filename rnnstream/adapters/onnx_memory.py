"""Whether one token after another is what an ONNX graph means: whether it looks ahead, or forgets what no state holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.adapters.onnx_graph import Value, needs_onnx
from rnnstream.adapters.onnx_head import random_tokens
from rnnstream.adapters.onnx_ports import Program, open_axes
from rnnstream.adapters.onnx_run import session
from rnnstream.adapters.rows import difference
from rnnstream.errors import ModelError
from rnnstream.model.step import Input

Array = npt.NDArray[Any]

RECURRENT = ("RNN", "GRU", "LSTM", "DynamicQuantizeLSTM")
STARTS = {5: "hidden", 6: "cell"}  # their inputs that are initial states
LENGTHS = {"Shape", "Size"}  # what they give does not depend on the numbers in their input
TOKENS = 4  # of the sequence that is tried: a convolution of a few taps looks ahead or forgets within it
TOLERANCE = 1e-4  # a sequence may be computed in another order, which is rounding; forgetting is far more


def check_nodes(graph: Any, program: Program) -> None:
    """Hold the graph's recurrent nodes to running forward in time, from states that are handed on.

    A node that runs along several places in one step, as along the frequencies of a frame, does not run in time.

    Args:
        graph: the onnx.ModelProto.
        program: a step of one row.

    Raises:
        ModelError: one runs backward, or starts anew with every token.
    """
    needs_onnx()
    if graph.functions:
        from onnx.inliner import inline_local_functions

        graph = inline_local_functions(graph)
    graph = _as_taken(graph, program)
    fed = {port.name for port in program.states}
    top = {name for node in graph.graph.node for name in node.output}
    for node, problem in _unfit(graph.graph, fed):
        if node.input[0] not in top | {program.x.name} or _length(graph, program, node) <= 1:
            raise ModelError(f"The {node.op_type} {node.name or next(filter(None, node.output))} {problem}")


def _unfit(graph: Any, fed: set[str]) -> Iterator[tuple[Any, str]]:
    """The recurrent nodes that are none of one step in time, and why; adds to `fed` what depends on a state."""
    for node in graph.node:  # which are in an order in which they can be run
        hangs_on = node.op_type not in LENGTHS and not fed.isdisjoint(node.input)
        for attribute in node.attribute:
            for branch in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inner = fed | {own.name for own, given in zip(branch.input, node.input, strict=False) if given in fed}
                yield from _unfit(branch, inner)
                hangs_on = hangs_on or any(value.name in inner for value in branch.output)
        if node.op_type in RECURRENT:
            hangs_on = True  # or it is refused
            if problem := _problem(node, fed):
                yield node, problem
        if hangs_on:
            fed.update(filter(None, node.output))


def _problem(node: Any, fed: Collection[str]) -> str:
    for attribute in node.attribute:
        if attribute.name == "direction" and attribute.s != b"forward":
            return (
                f"runs {attribute.s.decode(errors='replace')}: it needs the tokens that are still to come, so no step can "
                "be made of it. Train and export it forward only."
            )
    for place, what in STARTS.items():
        if place == 6 and "LSTM" not in node.op_type:
            continue
        start = node.input[place] if place < len(node.input) else ""
        if start not in fed:
            return (
                f"starts every token with {f'the same {what} state' if start else f'a {what} state of zeros'}, for it does "
                "not come from a state input: it forgets what came before. Export the graph with an input and an output for "
                "that state."
            )
    return ""


def _as_taken(graph: Any, program: Program) -> Any:
    """The graph with the branch that a step takes in the place of each If that no token and no state decides.

    What is not taken may be for other constants: silero-vad has a second network in one, for another sampling rate.
    """
    make_node = needs_onnx().helper.make_node
    copy = type(graph)()
    copy.CopyFrom(graph)
    while (place := _decided(copy, program)) is not None:
        node = copy.graph.node[place]
        name = "then_branch" if _value(copy, program, node.input[0]) else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
        ends = [make_node("Identity", [made.name], [out]) for made, out in zip(branch.output, node.output, strict=True)]
        nodes = [*copy.graph.node[:place], *branch.node, *ends, *copy.graph.node[place + 1 :]]
        copy.graph.initializer.extend(branch.initializer)
        del copy.graph.node[:]
        copy.graph.node.extend(nodes)
    return copy


def _decided(graph: Any, program: Program) -> int | None:
    """The place of the first If whose condition depends on no token and no state; None if there is none."""
    moving = {program.x.name, *(port.name for port in program.states)}
    for place, node in enumerate(graph.graph.node):
        if node.op_type == "If" and node.input[0] not in moving:
            return place
        if node.op_type not in LENGTHS and not moving.isdisjoint(_taken_by(node)):
            moving.update(filter(None, node.output))
    return None


def _taken_by(node: Any) -> set[str]:
    """The tensors that a node takes, those of the graphs inside it included."""
    inner = (inside for attribute in node.attribute for inside in attribute.g.node if attribute.HasField("g"))
    return set(node.input).union(*map(_taken_by, inner))


def _length(graph: Any, program: Program, node: Any) -> int:
    """Over how many places the node runs in one step, its input being one of the whole graph's."""
    return int(_value(graph, program, node.input[0]).shape[0])  # ONNX Runtime takes no other layout on the CPU


def _value(graph: Any, program: Program, name: str) -> Array:
    """What a tensor of the whole graph is in one step of one row."""
    copy = type(graph)()
    copy.CopyFrom(graph)
    del copy.graph.output[:]
    copy.graph.output.append(needs_onnx().helper.make_empty_tensor_value_info(name))
    feed = program.feed(np.zeros((1, program.state_size)), np.zeros((1, program.x.size)))
    taken = session(copy)
    needed = {port.name for port in taken.get_inputs()}
    return taken.run([name], {key: value for key, value in feed.items() if key in needed})[0]


def check_sequence(program: Program, x: Value, taken: Input) -> None:
    """Hold a few tokens at once against the same ones step by step, on each free axis of the token that is one of time.

    An axis is of rows where each row would get states of its own; then the graph does not run, or gives other states.

    Args:
        program: a step of one row.
        x: the token, as the graph has it.
        taken: what it is.

    Raises:
        ModelError: outputs or states differ.
    """
    tokens = random_tokens(taken, TOKENS)
    states, ys = np.zeros((1, program.state_size)), []
    for token in tokens:
        states, y = program(states, np.array([token]))
        ys.append(y.reshape(program.y.shape))
    for axis in open_axes(x, program.x):
        feed = program.feed(np.zeros((1, program.state_size)), np.zeros((1, program.x.size)))
        feed[x.name] = replace(program.x, axis=axis).lay(tokens.reshape(TOKENS, -1))
        try:
            y, *after = program.session.run([program.y.name, *(port.name for port in program.after)], feed)
        except Exception:  # of ONNX Runtime: more than one token does not fit, or these are rows
            continue
        if any(array.shape != port.shape for array, port in zip(after, program.after, strict=True)):
            continue
        ends = np.concatenate([array.reshape(1, -1) for array in after], axis=1)
        wanted = _as_sequence(ys, y.shape)
        apart = difference(ends, states), np.inf if wanted is None else difference(y, wanted)
        if max(apart) > TOLERANCE:
            what = "the states" if apart[0] > TOLERANCE else "the outputs"
            by = f"{what} differ by {max(apart):.2g}" if max(apart) < np.inf else f"{what} are {list(y.shape)} for {TOKENS}"
            raise ModelError(
                f"This graph gives another answer for {TOKENS} tokens at once than for one after another ({by}): it looks "
                "ahead or forgets, as a convolution over time does whose last inputs are no state. Export one step, with an "
                "input and an output for everything that it remembers."
            )


def _as_sequence(ys: list[Array], shape: tuple[int, ...]) -> Array | None:
    """The outputs of single steps as a graph gives those of all at once in this shape; None: in none that is known."""
    if shape == ys[0].shape:
        return ys[-1]  # that of the last token only
    for axis in range(len(shape)):
        joined = np.concatenate(ys, axis=axis) if axis < ys[0].ndim else ys[0]
        if joined.shape == shape:
            return joined
    size = len(ys) * ys[0].size
    return np.concatenate([y.reshape(-1) for y in ys]).reshape(shape) if np.prod(shape) == size else None
