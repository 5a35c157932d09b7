"""The head of an ONNX graph: a softmax or sigmoid at its end is taken out, for g2 makes it again.

Other outputs are logits only where somebody says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.adapters.onnx_graph import MOVE_ONLY
from rnnstream.adapters.onnx_ports import Program
from rnnstream.adapters.onnx_run import session
from rnnstream.adapters.rows import difference
from rnnstream.errors import ModelError
from rnnstream.model.step import Input, Output

Array = npt.NDArray[Any]

HEADS = {"Softmax": "categorical", "Sigmoid": "bernoulli"}
MEANS = {"ReduceMean"}  # of probabilities are still some; whether those of logits do as well, a trial shows
CLOSE = 1e-5  # between the graph's own softmax or sigmoid and ours: rounding
TRIALS = 3  # tokens on which the two are compared


def head_of(graph: Any, program: Program, taken: Input, said: str | None) -> tuple[Program, str, str]:
    """The program that gives what g2 works on, the kind of head, and a line for people.

    Raises:
        ModelError: what is said of the head is not so.
    """
    made, node = _last_function(graph.graph, program.y.name)
    kind = HEADS.get(made)
    as_it_is = program, "linear", "linear head: outputs as the graph gives them" + (f", behind its {made}" if made else "")
    if said == "linear" or (said is None and node is None):
        return as_it_is
    if kind is None:
        assert said is not None
        y = _trial(program, taken)[1]
        if said == "categorical" and program.y.size > 1 and (y >= 0).all() and np.allclose(y.sum(axis=1), 1, atol=1e-3):
            raise ModelError(
                '`head` is categorical, and the outputs add up to 1 already; head = "linear" gives them as they are.'
            )
        return program, said, f"{said} head"
    if said not in (None, kind):
        raise ModelError(f'`head` is {said}, and the outputs come out of a {made}; write head = "{kind}" or "linear".')
    if node is not None:
        logits = replace(program, session=session(_without(graph, node)))
        if _gives(logits, program, Output(kind, program.y.size), taken):  # type: ignore[arg-type]
            return logits, kind, f"{kind} head, in place of the {made} at the end of the graph"
        if said is None:
            return as_it_is
    raise ModelError(
        f"`head` is {said}, and the {made} of the outputs cannot be taken out of the graph; "
        'head = "linear" gives them as they are.'
    )


def random_tokens(taken: Input, count: int) -> Array:  # -> [count] or [count, K]
    """Seeded tokens for a trial."""
    rng = np.random.default_rng(1)
    return rng.integers(0, taken.size, count) if taken.kind == "token" else rng.normal(0, 1, (count, taken.size))


def _trial(program: Program, taken: Input) -> tuple[Array, Array]:  # -> [TRIALS, S], [TRIALS, V]
    """States and outputs of a few random tokens."""
    states = np.zeros((1, sum(port.size for port in program.states)))
    steps = []
    for token in random_tokens(taken, TRIALS):
        states, y = program(states, np.array([token]))
        steps.append((states, y))
    return np.concatenate([step[0] for step in steps]), np.concatenate([step[1] for step in steps])


def _gives(logits: Program, program: Program, output: Output, taken: Input) -> bool:
    """Whether g2 of these logits is what the graph gives, and the states are the same."""
    (mine, z), (states, y) = _trial(logits, taken), _trial(program, taken)
    return bool(mine.tobytes() == states.tobytes() and difference(output.g2(z), y) <= CLOSE)


def _last_function(graph: Any, y: str, outer: dict[str, tuple[Any, int]] | None = None) -> tuple[str, Any]:
    """The operation of `HEADS` that made y, and its node if it is not inside of a branch; ("", None) if there is none.

    Args:
        graph: an onnx.GraphProto.
        y: a name in it.
        outer: the nodes around it that make something, by that; and which of their outputs it is.
    """
    makers = (outer or {}) | {name: (node, place) for node in graph.node for place, name in enumerate(node.output)}
    while y in makers:
        node, place = makers[y]
        if node.op_type in HEADS:
            return node.op_type, node
        if node.op_type == "If":
            branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            return max((_last_function(branch, branch.output[place].name, makers)[0] for branch in branches), default=""), None
        if node.op_type not in MOVE_ONLY | MEANS:
            break
        y = node.input[0]
    return "", None


def _without(model: Any, node: Any) -> Any:
    """A copy of the graph in which this node hands on what it gets."""
    copy = type(model)()
    copy.CopyFrom(model)
    twin = next(other for other in copy.graph.node if list(other.output) == list(node.output))
    twin.op_type = "Identity"
    del twin.attribute[:]
    return copy
