"""The walk through a graph, node by node, in which the chain of parts comes about."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rnnstream.convert.onnx_axes import Axes, Place, Roles, of_input, regrouped
from rnnstream.convert.onnx_graph import Array, Graph, Node, NotAChain, called
from rnnstream.convert.parts import Part


@dataclass
class Walk:
    """The chain so far, and where in it each tensor stands.

    Attributes:
        graph: what is walked through.
        values: every tensor of it, from a run over a short sequence.
        depends: which inputs' numbers each tensor depends on.
        roles: what the axes of the input are.
        parts: the chain.
        places: where the tensors that depend on the input stand.
        tokens: the input is ids.
        size: of the vocabulary, for ids.
        scales: parts whose tensors are one number for all features so far, with their axes.
    """

    graph: Graph
    values: dict[str, Any]
    depends: dict[str, set[str]]
    roles: Roles = field(default_factory=Roles)
    parts: list[Part] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    tokens: bool = False
    size: int = 0
    scales: list[tuple[Part, Axes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places[self.graph.start] = Place(0, of_input(self.values[self.graph.start].shape))

    def refused(self, node: Node, why: str) -> NotAChain:
        """The error that says why a node is not part of a chain."""
        return NotAChain(f"{called(node)} {why}")

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in the run."""
        return tuple(self.values[name].shape)

    def place(self, node: Node, number: int = 0) -> Place:
        """Where an input of a node stands."""
        place = self.places.get(node.input[number])
        if place is None:
            raise self.refused(
                node, f"works on {node.input[number]!r}, which is no tensor of the chain any more, or a cell's state."
            )
        return replace(place, axes=self.roles.named(place.axes))

    def end(self, node: Node, number: int = 0, *, padded: bool = False) -> Place:
        """Where an input stands, which has to be the end of the chain so far.

        Args:
            node: takes it.
            number: of the input.
            padded: tokens may have been put in front.
        """
        place = self.place(node, number)
        if place.point != len(self.parts):
            raise self.refused(node, f"works on {node.input[number]!r}, where the graph branches; a chain has no branches.")
        if place.lead and not padded:
            raise self.refused(node, "stands between a padding and its convolution.")
        if np.dtype(self.values[node.input[number]].dtype).kind in "iub":
            raise self.refused(node, "works on whole numbers, as if they were no ids.")
        return place

    def ids(self, node: Node, number: int, size: int) -> Place:
        """Where an input stands, which has to be the ids that come in."""
        place = self.place(node, number)
        if self.parts or self.tokens or place.lead or self.roles.features:
            raise self.refused(node, "takes ids in the midst of the graph; a chain takes them at its beginning.")
        self.tokens, self.size, self.roles.features = True, size, ""
        return place

    def constant(self, node: Node, number: int) -> Array:
        """An input of a node that depends on no input of the graph."""
        name = node.input[number]
        if self.depends.get(name) or not isinstance(self.values.get(name), np.ndarray):
            raise self.refused(node, f"takes {name!r}, which is computed from the input, where a layer here has fixed numbers.")
        return self.values[name]

    def optional(self, node: Node, number: int) -> Array | None:
        """The same, None where the node does not have it."""
        return self.constant(node, number) if len(node.input) > number and node.input[number] else None

    def number(self, node: Node, number: int, default: float) -> float:
        """The same, of a single number."""
        found = self.optional(node, number)
        return default if found is None else float(found.reshape(()))

    def add(self, node: Node, part: Part, place: Place, axes: Axes) -> None:
        """A layer at the end of the chain; `place` is its input's, `axes` are its output's."""
        part.name = node.output[0] or node.output[1]
        self.parts.append(part)
        if node.output[0]:
            self.places[node.output[0]] = replace(place, point=len(self.parts), axes=axes)
            self._check(node)

    def add_last(self, name: str, place: Place, axes: Axes) -> None:
        """The last token of the layer that was just added; the arguments are as of `add`."""
        self.places[name] = replace(place, point=len(self.parts), axes=axes, last=self.roles.tokens != "")

    def add_scale(self, node: Node, s: Array, b: Array, place: Place) -> None:  # [K] or [1]
        """A scale at the end of the chain; how many features there are may not be known yet."""
        self.add(node, Part("scale", {}, {"s": s, "b": b}), place, place.axes)
        self.scales.append((self.parts[-1], place.axes))

    def move(self, node: Node, place: Place) -> None:
        """The same numbers under another name, in the shape that the node gave them."""
        axes = regrouped(place.axes, self.shape_of(node.output[0]))
        if axes is None:
            shape = [math.prod(size for _, size in axis) for axis in place.axes]
            new = list(self.shape_of(node.output[0]))
            raise self.refused(node, f"makes {new} of {shape}, which cuts tokens or features in pieces.")
        self.places[node.output[0]] = replace(place, axes=axes)

    def again(self, node: Node, place: Place) -> None:
        """The last part does what this node does as well; what led to it cannot be used any more."""
        self.places = {name: one for name, one in self.places.items() if one.point != place.point}
        self.places[node.output[0]] = place
        self._check(node)

    def fold(self, node: Node, offset: Array, place: Place) -> bool:  # [K] or [1]
        """Add to the bias of the layer at the end, if it has none yet."""
        tensors = self.parts[-1].tensors if self.parts and self.parts[-1].kind in ("dense", "conv") else {}
        if "b" not in tensors or tensors["b"].any() or len(offset) not in (1, len(tensors["b"])):
            return False
        tensors["b"] = tensors["b"] + offset
        self.again(node, place)
        return True

    def finish(self) -> Place:
        """Where the output stands, once all nodes are taken in.

        Raises:
            NotAChain: it is not the end of the chain, or its axes cannot be told.
        """
        place = self.places.get(self.graph.stop)
        if place is None or place.point != len(self.parts):
            raise NotAChain(f"the output {self.graph.stop!r} is not the end of the chain, but comes from its midst.")
        if place.lead or place.tail:
            more = place.lead + place.tail
            raise NotAChain(f"the output {self.graph.stop!r} has {more} tokens more than the input, which a padding put there.")
        roles = self.roles
        rest = [
            name for axis in self.input_axes() for name, _ in axis if name not in {roles.tokens, roles.features, *roles.rows}
        ]
        if roles.features is None:
            raise NotAChain("which axis of the input holds the features of a token cannot be told from its nodes.")
        if roles.tokens is None:  # no node goes along the tokens, so that any axis is as good
            roles.tokens = rest.pop(0) if rest else ""
        roles.rows |= set(rest)
        for part, axes in self.scales:
            size = (roles.size(axes),)
            part.tensors = {name: np.broadcast_to(tensor, size) for name, tensor in part.tensors.items()}
        return replace(place, axes=roles.named(place.axes))

    def input_axes(self) -> Axes:
        """The axes of the input, x0, x1, ..."""
        return of_input(self.shape_of(self.graph.start))

    def _check(self, node: Node) -> None:
        """Our own invariant: the axes are those that the run has had."""
        name = node.output[0]
        if [math.prod(size for _, size in axis) for axis in self.places[name].axes] != list(self.shape_of(name)):
            raise self.refused(node, f"gives {list(self.shape_of(name))}, which no layer here gives.")
