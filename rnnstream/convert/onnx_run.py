"""ONNX Runtime over the graph that a chain was made from, token by token or as the graph has it.

T tokens    B rows of a batch    F features    K numbers of a token    V outputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnstream.convert.hints import Hints
from rnnstream.convert.onnx_axes import FEATURES
from rnnstream.convert.onnx_graph import RUNTIME, Array, Graph, initial_of, last_of
from rnnstream.convert.onnx_plan import Chain, plan
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError


def run_source(path: Path, said: Hints, converted: Converted, xs: Sequence[Any]) -> tuple[str, Array]:
    """The same graph in ONNX Runtime, from zero states, over a sequence.

    Args:
        path: of the graph.
        said: the --spec that it was converted with.
        converted: what it was converted to.
        xs: T tokens: ids, or vectors.

    Returns:
        The name and version of the runtime, and the outputs [T, V]; fewer, those of the first tokens, where a graph takes a
        fixed number of tokens and does not hand its states on.

    Raises:
        ModelError: there is no way to have the graph's outputs for each token.
    """
    chain = plan(path, said)
    tokens = np.asarray(xs)
    if converted.spec.input_kind == "token" and not chain.tokens:
        tokens = np.eye(chain.size)[tokens]
    if not chain.last:
        return RUNTIME, _in_stretches(chain, tokens)
    if chain.length is not None:
        raise ModelError(f"the graph takes {chain.length} tokens and gives the output of the last; it has none of the others.")
    run = chain.graph.runner([chain.graph.stop])
    rows = [_run(chain, run, tokens[:end], _zeros(chain))[0] for end in range(1, len(tokens) + 1)]
    return RUNTIME, np.concatenate(rows)


def _in_stretches(chain: Chain, tokens: Array) -> Array:  # [T] or [T, K] -> [T, V]
    """The outputs by as many tokens at a time as the graph takes, its states handed on."""
    size, next_values = chain.length or len(tokens), _next_values(chain.graph)
    if next_values is None and chain.length == 1:
        raise ModelError("the graph takes one token at a time, and not all of its states are among its inputs and outputs.")
    whole = next_values is not None and all(part.kind != "conv" for part in chain.parts)
    run = chain.graph.runner([chain.graph.stop, *(next_values or {}).values()])
    states, rows = _zeros(chain), []
    for start in range(0, len(tokens) if whole else size, size):
        stretch = tokens[start : start + size]
        filled = np.concatenate([stretch, np.repeat(stretch[-1:], size - len(stretch), axis=0)])  # outputs do not look ahead
        row, given = _run(chain, run, filled, states)
        states = states | {name: given[output] for name, output in (next_values or {}).items()}
        rows.append(row)
    return np.concatenate(rows)[: len(tokens)]


def _run(chain: Chain, run: Any, tokens: Array, states: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The outputs [n, V], or [1, V] of the last token, and all that came back."""
    given = run(states | {chain.graph.start: _shaped(chain, tokens)})
    return _rows(chain, given[chain.graph.stop], len(tokens)), given


def _next_values(graph: Graph) -> dict[str, str] | None:
    """The outputs that are the next values of the state inputs; None where the states are not all handed in and out."""
    last = {one.name: last_of(graph, one.name) for one in graph.model.graph.output}
    found: dict[str, str] = {}
    left = {(key, slot) for key, kind in graph.cells().items() for slot in ((5, 6) if kind == "LSTM" else (5,))}
    for name in graph.states:
        cells = initial_of(graph, name)
        outputs = [output for output in last if cells and last[output] == cells]
        if outputs:
            found[name] = outputs[0]
            left -= cells
    return None if left else found


def _zeros(chain: Chain) -> dict[str, Array]:
    """Zero states, of one row where the graph does not want more."""
    inputs = {name: chain.graph.inputs[name] for name in chain.graph.states}
    return {
        name: np.zeros([dim if isinstance(dim, int) else math.prod(chain.rows().values()) for dim in tensor.dims], tensor.dtype)
        for name, tensor in inputs.items()
    }


def _shaped(chain: Chain, tokens: Array) -> Array:  # [n] or [n, K] -> as the graph's input
    """The tokens in the shape of the input, the same for each row."""
    rows = chain.rows()
    order = [role for role in chain.roles if role in ("T", "F")]
    if "T" not in order:
        tokens = tokens[0]
    if "F" not in order and not chain.tokens:
        tokens = tokens[..., 0]
    if order == ["F", "T"]:
        tokens = tokens.T
    sizes = iter(tokens.shape)
    shape = [next(sizes) if role in ("T", "F") else 1 for role in chain.roles]
    return np.tile(tokens.reshape(shape), [rows.get(f"x{place}", 1) for place in range(len(chain.roles))]).astype(
        chain.graph.inputs[chain.graph.start].dtype
    )


def _rows(chain: Chain, output: Array, count: int) -> Array:  # as the graph's output -> [n, V], or [1, V] of the last token
    """The outputs of each token, of the first row."""
    sizes = dict(pair for axis in chain.out for pair in axis)  # in the order of memory; of the run that told the axes
    sizes |= {name: size for name, size in [("T", count), *chain.rows().items()] if name in sizes}
    output = output.reshape(list(sizes.values()))
    output = output[tuple(slice(None) if name in ("T", FEATURES) else 0 for name in sizes)]
    if [name for name in sizes if name in ("T", FEATURES)] == [FEATURES, "T"]:
        output = output.T
    return output.reshape(count if "T" in sizes else 1, -1)
