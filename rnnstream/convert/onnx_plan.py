"""From an ONNX graph to the parts of a chain: the graph run over sequences of different sizes, and walked through.

T tokens    B rows of a batch    F features    K numbers of a token
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rnnstream.convert.hints import Hints
from rnnstream.convert.onnx_axes import Axes
from rnnstream.convert.onnx_file import load
from rnnstream.convert.onnx_graph import RANDOM, Array, Graph, NotAChain
from rnnstream.convert.onnx_ops import visit
from rnnstream.convert.onnx_walk import Walk
from rnnstream.convert.parts import Part
from rnnstream.errors import ModelError

RUNS = ((7, 3), (11, 2))  # two pairs of sizes for T and B, so that no constant of a graph fits both by chance


@dataclass(frozen=True)
class Chain:
    """What a graph has turned out to be.

    Attributes:
        graph: the graph.
        parts: the layers.
        tokens: the input is ids.
        size: how many ids, or K.
        roles: of each axis of the input: "T", "F", "B", or "" where it is of size 1.
        out: the axes of the output: "T", "F", and those of the rows by their names.
        last: the output is that of the last token only.
    """

    graph: Graph
    parts: list[Part]
    tokens: bool
    size: int
    roles: tuple[str, ...]
    out: Axes
    last: bool

    @property
    def length(self) -> int | None:
        """How many tokens the graph takes at once; None: any number."""
        if "T" not in self.roles:
            return 1
        size = self.graph.inputs[self.graph.start].dims[self.roles.index("T")]
        return size if isinstance(size, int) else None

    def rows(self) -> dict[str, int]:
        """How many rows the graph wants at least along each axis of rows."""
        dims = zip(self.graph.inputs[self.graph.start].dims, self.roles, strict=True)
        return {f"x{place}": dim if isinstance(dim, int) else 1 for place, (dim, role) in enumerate(dims) if role == "B"}


def plan(path: Path, said: Hints) -> Chain:
    """The chain in a graph.

    Raises:
        ModelError: it cannot be read, or --spec does not fit it.
        NotAChain: it can be read and is no chain of layers that rnnstream has.
    """
    if said.layers is not None or said.ignore:
        raise ModelError("`layers` and `ignore` in --spec are for files without a graph; an ONNX graph says its own order.")
    if said.states or said.constants or said.batch:
        raise NotAChain("`states`, `constants` and `batch` in --spec are for graphs that run as they are, in ONNX Runtime.")
    graph = load(path, said)
    chain = _any_length(graph, _of_some_length(graph))
    if said.input == "dense" and chain.tokens:
        raise ModelError(f"`input` in --spec is dense, but the graph takes the input {graph.start!r} for ids.")
    if said.size not in (None, chain.size):
        raise ModelError(f"`size` in --spec is {said.size}, but by the graph it is {chain.size}.")
    return chain


def _chain(graph: Graph) -> Chain:
    """The chain that the graph is in runs of different sizes."""
    unfit = []
    for sizes in zip(*(_sizes(graph, *run) for run in RUNS), strict=True):
        try:
            chain, other = (_walk(graph, *three) for three in sizes)
        except _Unfit as problem:
            unfit.append(problem)
            continue
        if not _same(chain, other):
            raise _Unlike("the graph does something else with longer sequences or more rows; in a chain all tokens are alike.")
        return chain
    raise unfit[0]


def _sizes(graph: Graph, long: int, short: int) -> list[tuple[int, int, int]]:
    """Sizes of the first and the second free axis of the input, T and B in either order, and of those of the states.

    A graph may be made for one row, whatever it says of its input; or for as many as only the input says.
    """
    rows = [size for size in graph.inputs[graph.start].dims if isinstance(size, int)]
    return [(long, short, short), (long, short, long), (long, 1, 1), (1, long, 1), *((long, short, size) for size in rows)]


def _of_some_length(graph: Graph) -> Chain:
    """The chain; if need be of a length that only the output says, as in exports of PyTorch 2.13 with free axes."""
    try:
        return _chain(graph)
    except _Unfit as unfit:
        values = [one for one in (*graph.model.graph.output, *graph.model.graph.value_info) if one.name == graph.stop]
        sizes = {dim.dim_value for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_value > 1}
        for size in sorted(sizes):
            for place, dim in enumerate(graph.inputs[graph.start].dims):
                if not isinstance(dim, int):
                    try:
                        return _chain(_with_size(graph, place, size))
                    except _Unfit:
                        continue
        raise unfit from None


def _any_length(graph: Graph, chain: Chain) -> Chain:
    """The chain of a graph that says how many tokens it takes, as one of any number, if nothing in it holds it to that.

    Args:
        graph: as it was read; that of the chain has only those branches that this number of tokens leads to.
        chain: of the graph.

    Raises:
        NotAChain: the numbers in it depend on how many tokens there are.
    """
    if "T" not in chain.roles or chain.length is None:
        return chain
    try:
        free = _chain(_with_size(graph, chain.roles.index("T"), None))
        if _same(chain, free):
            return free
    except _Unlike:
        pass
    except NotAChain:  # it runs with no other number of tokens
        return chain
    raise NotAChain(
        f"the graph takes {chain.length} tokens at a time and would do something else with another number of them; in a chain "
        "all tokens are alike."
    )


def _with_size(graph: Graph, place: int, size: int | None) -> Graph:
    """The graph with another size of an axis of its input."""
    source = graph.inputs[graph.start]
    dims = (*source.dims[:place], size, *source.dims[place + 1 :])
    return replace(graph, inputs=graph.inputs | {graph.start: replace(source, dims=dims)})


class _Unfit(NotAChain):
    """ONNX Runtime does not run a graph with these sizes."""


class _Unlike(NotAChain):
    """A graph is one chain at some sizes, and another at others."""


def _walk(graph: Graph, first: int, second: int, rest: int) -> Chain:
    """The chain that the graph is in a run with these sizes."""
    feeds = _feeds(graph, first, second, rest)
    names = [graph.start, *graph.states, *(name for node in graph.nodes(graph.stop) for name in node.output if name)]
    try:
        values = graph.constants() | graph.run(names, feeds)
    except NotAChain as problem:
        raise _Unfit(str(problem)) from None
    if unfolded := graph.unfolded(values):
        return _walk(unfolded, first, second, rest)
    depends = graph.depends(graph.stop)
    walk = Walk(graph, values, depends)
    for node in graph.nodes(graph.stop):
        if node.op_type in RANDOM:  # even with a seed, which makes the same numbers of every run
            raise walk.refused(node, "draws numbers at random, which no layer here does.")
    for node in graph.nodes(graph.stop, initial=False):
        if any(graph.start in depends[name] for name in node.output if name):
            visit(walk, node)
    place = walk.finish()
    known = {walk.roles.tokens: "T", walk.roles.features: "F"} | dict.fromkeys(walk.roles.rows, "B")
    axes = walk.input_axes()
    roles = tuple(known[axis[0][0]] if axis else "" for axis in axes)
    size = walk.size if walk.tokens else walk.roles.size(axes)
    out = tuple(tuple(("T" if name == walk.roles.tokens else name, count) for name, count in axis) for axis in place.axes)
    return Chain(graph, walk.parts, walk.tokens, size, roles, out, place.last)


def _feeds(graph: Graph, first: int, second: int, rest: int) -> dict[str, Array]:
    """Zeros for every input, its free axes of these sizes."""
    free = [dim for dim in graph.inputs[graph.start].dims if not isinstance(dim, int)]
    if len(free) > 2:
        raise NotAChain(f"the graph does not say how many numbers a token of its input {graph.start!r} has.")
    own = iter((first, second))
    feeds = {}
    for name in (graph.start, *graph.states):
        dims = graph.inputs[name].dims
        shape = [dim if isinstance(dim, int) else next(own) if name == graph.start else rest for dim in dims]
        feeds[name] = np.zeros(shape, graph.inputs[name].dtype)
    return feeds


def _same(one: Chain, other: Chain) -> bool:
    """Whether two runs found the same chain, the sizes of T and B apart."""

    def names(axes: Axes) -> list[list[str]]:
        return [[name for name, _ in axis] for axis in axes]

    if (one.size, one.roles, one.last, names(one.out)) != (other.size, other.roles, other.last, names(other.out)):
        return False
    return len(one.parts) == len(other.parts) and all(
        mine.kind == yours.kind
        and mine.keys == yours.keys
        and all(np.array_equal(tensor, yours.tensors[name], equal_nan=True) for name, tensor in mine.tensors.items())
        for mine, yours in zip(one.parts, other.parts, strict=True)
    )
