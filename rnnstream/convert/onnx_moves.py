"""The nodes of an ONNX graph that compute nothing: ids into vectors, axes moved, tokens padded, cut off or picked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rnnstream.convert import parts
from rnnstream.convert.onnx_axes import Place, features
from rnnstream.convert.onnx_graph import Node, attributes
from rnnstream.convert.onnx_walk import Walk


def gather(walk: Walk, node: Node) -> None:
    """Of a constant table, an embedding; of the chain, an axis of size 1 or the last token."""
    axis = attributes(node).get("axis", 0)
    if node.input[0] not in walk.places:
        table = walk.constant(node, 0)
        if table.ndim != 2 or axis not in (0, -2):
            raise walk.refused(node, f"picks from {list(table.shape)} along axis {axis}; an embedding is the rows of a matrix.")
        place = walk.ids(node, 1, len(table))
        walk.add(node, parts.embedding(node.output[0], table), place, (*place.axes, features(table.shape[1])))
        return
    place, index = walk.place(node), walk.constant(node, 1)
    axis %= len(place.axes)
    size = math.prod(size for _, size in place.axes[axis])
    if index.size != 1:
        raise walk.refused(node, "picks several parts of an axis; a chain takes the whole axis, or the last token.")
    walk.move(node, _taken(walk, node, place, axis, range(size)[int(index.reshape(()))], 1))


def cut(walk: Walk, node: Node) -> None:
    """Of the tokens the last, or what a padding put there; of another axis all."""
    place, said = walk.place(node), attributes(node)
    if walk.graph.opset >= 10:
        starts, ends = walk.constant(node, 1), walk.constant(node, 2)
        axes, steps = walk.optional(node, 3), walk.optional(node, 4)
    else:
        starts, ends, axes, steps = said["starts"], said["ends"], said.get("axes"), None
    for number, axis in enumerate(range(len(starts)) if axes is None else axes):
        axis = int(axis) % len(place.axes)
        size = math.prod(size for _, size in place.axes[axis])
        taken = range(size)[slice(int(starts[number]), int(ends[number]), 1 if steps is None else int(steps[number]))]
        if taken.step != 1:
            raise walk.refused(
                node, f"goes through an axis in steps of {taken.step}; a chain takes every token, in their order."
            )
        place = _taken(walk, node, place, axis, taken.start, len(taken))
    walk.move(node, place)


def _taken(walk: Walk, node: Node, place: Place, axis: int, start: int, count: int) -> Place:
    """What is left where this much is taken of an axis: all of it, the last token, or what is no padding."""
    size = math.prod(size for _, size in place.axes[axis])
    if count == size:
        return place
    if not walk.roles.is_tokens(place.axes, axis):
        raise walk.refused(node, f"takes {count} of {size} along an axis that is not the tokens.")
    if count == 1 and start == size - 1 and not place.lead and not place.tail:
        return replace(place, axes=(*place.axes[:axis], (), *place.axes[axis + 1 :]), last=True)
    return _longer(walk, node, place, axis, -start, start + count - size)


def _longer(walk: Walk, node: Node, place: Place, axis: int, before: int, behind: int) -> Place:
    """Tokens put in front and behind, or cut off."""
    lead, tail = place.lead + before, place.tail + behind
    if lead < 0 or tail < 0:
        raise walk.refused(
            node, "cuts tokens out of the sequence, as an unrolled loop does; in a chain every token goes the same way."
        )
    tokens = tuple((name, size + before + behind) for name, size in place.axes[axis])
    return replace(place, axes=(*place.axes[:axis], tokens, *place.axes[axis + 1 :]), lead=lead, tail=tail)


def pad(walk: Walk, node: Node) -> None:
    """Zeros in front of the tokens, for a convolution."""
    place, said = walk.place(node), attributes(node)
    if walk.graph.opset >= 11:
        pads, value, axes = walk.constant(node, 1).tolist(), walk.number(node, 2, 0.0), walk.optional(node, 3)
    else:
        pads, value, axes = said["pads"], said.get("value", 0.0), None
    which = list(range(len(place.axes))) if axes is None else [int(axis) % len(place.axes) for axis in axes]
    if said.get("mode", "constant") != "constant" or value:
        raise walk.refused(node, "pads with other numbers than zeros.")
    for number, axis in enumerate(which):
        before, behind = pads[number], pads[number + len(which)]
        if not (before or behind):
            continue
        if not walk.roles.is_tokens(place.axes, axis) or not place.axes[axis]:
            raise walk.refused(node, "pads another axis than the tokens.")
        place = _longer(walk, node, place, axis, before, behind)
    walk.move(node, place)


def onehot(walk: Walk, node: Node) -> None:
    """Ids as vectors with a single 1."""
    depth = int(walk.constant(node, 1).reshape(()))
    axis = attributes(node).get("axis", -1)
    place = walk.ids(node, 0, depth)
    if walk.constant(node, 2).tolist() != [0, 1] or axis not in (-1, len(place.axes)):
        raise walk.refused(node, "does not put a 1 among zeros along the last axis.")
    walk.again(node, replace(place, axes=(*place.axes, features(depth))))


def transpose(walk: Walk, node: Node) -> None:
    """The axes in another order."""
    place = walk.place(node)
    order = attributes(node).get("perm", list(range(len(place.axes)))[::-1])
    walk.move(node, replace(place, axes=tuple(place.axes[axis] for axis in order)))


def move(walk: Walk, node: Node) -> None:
    """The same numbers in the same order of memory."""
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and walk.constant(node, 2).any():
        raise walk.refused(node, "drops numbers at random, as in training; export the graph for inference.")
    if node.op_type == "Concat" and len(node.input) > 1:
        raise walk.refused(node, "joins several tensors; a chain has one.")
    walk.move(node, walk.place(node))


def cast(walk: Walk, node: Node) -> None:
    """Between kinds of numbers; ids may come in as numbers of any kind."""
    old, new = (np.dtype(walk.values[name].dtype).kind for name in (node.input[0], node.output[0]))
    if new in "iub" and (walk.parts or new == "b"):
        raise walk.refused(node, "rounds the numbers of a layer.")
    if old in "iub" and new not in "iub" and not walk.tokens:
        raise walk.refused(node, "makes features of whole numbers; tokens of a chain are ids or vectors of any numbers.")
    walk.move(node, walk.place(node))


MOVES = {
    **dict.fromkeys(("Identity", "Dropout", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Expand", "Concat"), move),
    "Gather": gather,
    "OneHot": onehot,
    "Slice": cut,
    "Pad": pad,
    "Transpose": transpose,
    "Cast": cast,
}
