"""ONNX graphs as a chain of our layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rnnstream.convert.hints import Hints
from rnnstream.convert.onnx_graph import HALVES, Graph, NotAChain, attributes, initial_of, last_of
from rnnstream.convert.onnx_plan import Chain, plan
from rnnstream.convert.onnx_run import run_source
from rnnstream.convert.parts import Converted, assemble
from rnnstream.errors import ModelError

__all__ = ["NotAChain", "read", "run_source"]


def read(path: Path, said: Hints) -> Converted:
    """The network in an ONNX graph.

    Raises:
        ModelError: it cannot be read, or --spec does not fit it.
        NotAChain: it can be read and is no chain of layers that rnnstream has.
    """
    try:
        return _converted(plan(path, said), path, said)
    except ModelError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, StopIteration, RecursionError) as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise NotAChain(f"the graph has something that is not known here ({what:.100}).") from problem


def _converted(chain: Chain, path: Path, said: Hints) -> Converted:
    if all(part.kind == "activation" for part in chain.parts):
        raise NotAChain("the graph has no layer but activations, and nothing that was trained.")
    return assemble(
        chain.parts,
        name=path.stem if said.name is None else said.name,
        tokens=chain.tokens or said.input == "token",
        size=chain.size,
        head=said.head,
        vocabulary=said.vocabulary,
        notes=_notes(chain, said),
    )


def _notes(chain: Chain, said: Hints) -> list[str]:
    """What was taken to be so, and what was left out."""
    graph, notes = chain.graph, []
    states = [name for name in graph.states if initial_of(graph, name)]
    if states:
        notes.append(f"the state is zero at first and then kept, so that nothing is handed in for {', '.join(states)}.")
    left = [one.name for one in graph.model.graph.output if one.name != graph.stop]
    last = [name for name in left if last_of(graph, name)]
    if last:
        notes.append(f"left out, because they are the state: {', '.join(last)}.")
    if others := [name for name in left if name not in last]:
        notes.append(f"left out, because the chain ends with {graph.stop}: {', '.join(others)}.")
    if said.start:
        notes.append(f"the chain begins with {said.start}; what computes it is left out.")
    if chain.last:
        notes.append("the graph gives the output of the last token only; here every token has one.")
    if chain.length is not None and chain.length > 1:
        notes.append(
            f"the graph takes {chain.length} tokens at a time, so that what it does with more of them cannot be seen; the "
            "chain takes them one by one and goes on."
        )
    if half := _half(graph):
        notes.append(f"the graph computes in {half}, the chain in float32.")
    if said.input == "token" and not chain.tokens:
        notes.append(f"the {chain.size} numbers of a token are taken to be one-hot.")
    return notes


def _half(graph: Graph) -> str | None:
    """The half precision that the tokens come in or are cast to."""
    if graph.inputs[graph.start].dtype == np.float16:
        return "float16"
    depends = graph.depends(graph.stop)
    made = {attributes(node)["to"] for node in graph.nodes(graph.stop) if node.op_type == "Cast" and depends[node.output[0]]}
    return next((name for name, kind in HALVES.items() if kind in made), None)
