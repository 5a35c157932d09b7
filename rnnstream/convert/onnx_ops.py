"""The nodes of an ONNX graph that have a layer here, or that only move axes: what each adds to the chain.

A node that is not in `OPS`, or has an attribute or a shape that no layer here has, is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rnnstream.convert import parts
from rnnstream.convert.onnx_axes import Place, features
from rnnstream.convert.onnx_cells import function_of, recurrent
from rnnstream.convert.onnx_graph import Array, Node, attributes
from rnnstream.convert.onnx_moves import MOVES
from rnnstream.convert.onnx_walk import Walk
from rnnstream.convert.parts import Part

Op = Callable[[Walk, Node], None]


def _activation(walk: Walk, node: Node) -> None:
    said = attributes(node)
    function = function_of(node.op_type, said)
    if function is None:
        raise walk.refused(node, f"has {said}, which no activation here is.")
    place = walk.end(node)
    walk.add(node, parts.activation(function), place, place.axes)


def _clip(walk: Walk, node: Node) -> None:
    said = attributes(node)
    low, high = (
        walk.number(node, number, said.get(key, default))
        for number, key, default in ((1, "min", -math.inf), (2, "max", math.inf))
    )
    known: dict[tuple[float, float], str] = {(-1, 1): "hard_tanh", (0, 6): "relu6", (0, math.inf): "relu"}
    if (low, high) not in known:
        raise walk.refused(node, f"cuts off at {low:g} and {high:g}; -1 and 1, 0 and 6, and 0 alone are known here.")
    place = walk.end(node)
    walk.add(node, parts.activation(known[low, high]), place, place.axes)


def _softmax(walk: Walk, node: Node) -> None:
    place = walk.end(node)
    axis = attributes(node).get("axis", -1 if walk.graph.opset >= 13 else 1) % len(place.axes)
    others = [place.axes[one] for one in range(axis + 1, len(place.axes))] if walk.graph.opset < 13 else []
    if any(others):  # up to opset 12 a softmax goes over all axes from this one on; sizes of 1 among them do no harm
        if place.axes[axis]:
            raise walk.refused(node, "is no softmax over the features of a token.")
        axis = next(one for one in range(len(place.axes)) if one > axis and place.axes[one])
        if any(place.axes[axis + 1 :]):
            raise walk.refused(node, "is no softmax over the features of a token.")
    if not walk.roles.is_features(place.axes, axis):
        raise walk.refused(node, "is no softmax over the features of a token.")
    walk.add(node, parts.activation("softmax"), place, place.axes)


def _matmul(walk: Walk, node: Node) -> None:
    if node.input[0] not in walk.places:
        raise walk.refused(node, "multiplies from the left; here a matrix is multiplied with features.")
    _product(walk, node, walk.constant(node, 1), None)


def _gemm(walk: Walk, node: Node) -> None:
    said = attributes(node)
    if node.input[0] not in walk.places or said.get("transA"):
        raise walk.refused(node, "multiplies from the left; here a matrix is multiplied with features.")
    matrix = walk.constant(node, 1)
    matrix = matrix.T if said.get("transB") else matrix
    bias = walk.constant(node, 2) if len(node.input) > 2 and node.input[2] else None
    if bias is not None:
        if bias.size != 1 and (bias.size != matrix.shape[1] or bias.shape[-1] != bias.size):
            raise walk.refused(node, f"adds {list(bias.shape)}, which is not a number for each output.")
        bias = np.broadcast_to(bias.reshape(-1) * bias.dtype.type(said.get("beta", 1.0)), matrix.shape[-1:])
    _product(walk, node, matrix * matrix.dtype.type(said.get("alpha", 1.0)), bias)


def _product(walk: Walk, node: Node, matrix: Array, bias: Array | None) -> None:  # [K, N], [N]
    place = walk.end(node)
    matrix = matrix.reshape(matrix.shape[-2:]) if matrix.size == np.prod(matrix.shape[-2:]) else matrix
    if matrix.ndim != 2:
        raise walk.refused(node, f"multiplies with {list(matrix.shape)}; a layer here takes one matrix.")
    if not walk.roles.is_features(place.axes, len(place.axes) - 1):
        raise walk.refused(node, "multiplies along another axis than the features of a token.")
    axes = (*place.axes[:-1], features(matrix.shape[1]))
    axes = ((),) * (len(walk.shape_of(node.output[0])) - len(axes)) + axes
    walk.add(node, parts.dense(node.output[0], matrix.T, bias), place, axes)


def _conv(walk: Walk, node: Node) -> None:
    place, w, said = walk.end(node, padded=True), walk.constant(node, 1), attributes(node)  # w [N, K, W]
    bias = walk.constant(node, 2) if len(node.input) > 2 and node.input[2] else None
    if w.ndim != 3:
        raise walk.refused(node, f"goes over {w.ndim - 2} axes; here a convolution goes over the tokens.")
    taps, dilation = w.shape[2], said.get("dilations", [1])[0]
    span = (taps - 1) * dilation
    before, behind = said.get("pads", [0, 0])
    if said.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        before = span // 2 if said["auto_pad"] == "SAME_UPPER" else span - span // 2
        behind = span - before
    if said.get("group", 1) != 1 or set(said.get("strides", [1])) != {1}:
        raise walk.refused(node, f"has {said.get('group', 1)} groups and strides {said.get('strides', [1])}; here all are 1.")
    along = taps == 1 or (place.axes[2] and walk.roles.is_tokens(place.axes, 2))
    if not along or not walk.roles.is_features(place.axes, 1):
        raise walk.refused(node, "works on axes that are not rows, features and tokens, in this order.")
    lead = place.lead + before - span
    if lead:
        what = f"looks {-lead} tokens ahead, or leaves them out" if lead < 0 else f"is padded by {lead} tokens too many"
        raise walk.refused(node, f"{what}; padded by {span} zeros in front, it would be causal and could be streamed.")
    tokens = tuple((name, size + before + behind - span) for name, size in place.axes[2])
    walk.add(
        node,
        parts.conv(node.output[0], np.ascontiguousarray(w.transpose(0, 2, 1)), bias, dilation),
        replace(place, lead=0, tail=place.tail + behind),
        (place.axes[0], features(len(w)), tokens),
    )


def _batch_norm(walk: Walk, node: Node) -> None:
    place, said = walk.end(node), attributes(node)
    training = said.get("training_mode") or any(node.output[1:])  # up to opset 13 the other outputs are what says it
    if training or not walk.roles.is_features(place.axes, 1):
        raise walk.refused(node, "does not normalise the features of a token by fixed statistics.")
    gamma, beta, mean, variance = (walk.constant(node, number) for number in range(1, 5))
    part = parts.batch_norm(node.output[0], gamma, beta, mean, variance, said.get("epsilon", 1e-5))
    walk.add(node, part, place, place.axes)


def _layer_norm(walk: Walk, node: Node) -> None:
    place, said = walk.end(node), attributes(node)
    axis = said.get("axis", -1) % len(place.axes)
    if axis != len(place.axes) - 1 or not walk.roles.is_features(place.axes, axis):
        raise walk.refused(node, "does not normalise the features of a token.")
    gamma, beta, size = walk.constant(node, 1), walk.optional(node, 2), walk.roles.size(place.axes)
    gamma = np.broadcast_to(_per_feature(walk, node, gamma, place), (size,))
    beta = None if beta is None else np.broadcast_to(_per_feature(walk, node, beta, place), (size,))
    part = parts.layer_norm(node.output[0], gamma, beta, size, gamma.dtype, said.get("epsilon", 1e-5))
    walk.add(node, part, place, place.axes)


def _arithmetic(walk: Walk, node: Node) -> None:
    """With a constant, a bias or a scale; of two tensors of the chain, a residual or x * sigmoid(x)."""
    moving = [number for number, name in enumerate(node.input) if name in walk.places]
    if len(moving) == 2:
        _two(walk, node)
        return
    place = walk.end(node, moving[0] if moving else 0)
    constant = _per_feature(walk, node, walk.constant(node, 1 - moving[0]), place)
    kind = node.op_type
    if kind == "Div" and moving[0] == 1:
        raise walk.refused(node, "divides by features, which no layer here does.")
    offset = constant if kind == "Add" else -constant if kind == "Sub" and not moving[0] else None
    if offset is not None and walk.fold(node, offset, place):
        return
    one, zero = np.ones(1, constant.dtype), np.zeros(1, constant.dtype)
    s, b = {
        "Add": (one, constant),
        "Sub": (-one, constant) if moving[0] else (one, -constant),
        "Mul": (constant, zero),
        "Div": (one / constant if kind == "Div" else one, zero),
    }[kind]
    walk.add_scale(node, s, b, place)


def _per_feature(walk: Walk, node: Node, constant: Array, place: Place) -> Array:  # -> [K] or [1]
    """A constant operand, if it has the same numbers for every token and row."""
    if constant.size == 1:
        return constant.reshape(1)
    missing = max(0, constant.ndim - len(place.axes))
    for number, size in enumerate(constant.shape[::-1]):
        axis = len(place.axes) - 1 - number
        if size > 1 and (axis < 0 or not walk.roles.is_features(place.axes, axis)):
            raise walk.refused(node, f"takes {list(constant.shape)}, which is not one number for each feature.")
    if constant.size != walk.roles.size(place.axes) or any(size > 1 for size in constant.shape[:missing]):
        raise walk.refused(node, f"takes {list(constant.shape)}, which is not one number for each feature.")
    return constant.reshape(-1)


def _two(walk: Walk, node: Node) -> None:
    first, second = walk.place(node, 0), walk.place(node, 1)
    early, late = (first, second) if first.point < second.point else (second, first)
    same = replace(early, point=0) == replace(late, point=0) and not early.lead and not early.tail
    if not same or late.point != len(walk.parts):
        raise walk.refused(node, "joins two branches; only an earlier tensor of the chain can be added, token by token.")
    if node.op_type == "Add":
        name = walk.parts[early.point - 1].name if early.point else ""
        walk.add(node, Part("residual", {"of": name}), late, late.axes)
    elif node.op_type == "Mul" and early.point == late.point - 1 and walk.parts[-1].keys.get("function") == "sigmoid":
        walk.parts[-1].keys["function"] = "silu"
        walk.again(node, late)
    else:
        raise walk.refused(node, "joins two branches; here only a sum and x * sigmoid(x) can be.")


OPS: dict[str, Op] = {
    **dict.fromkeys(("RNN", "GRU", "LSTM"), recurrent),
    **dict.fromkeys(
        ("Tanh", "Sigmoid", "Relu", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign", "Exp", "Swish"), _activation
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **MOVES,
    "Clip": _clip,
    "Softmax": _softmax,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
}


def visit(walk: Walk, node: Node) -> None:
    """Take one node into the chain.

    Raises:
        NotAChain: there is no layer for it.
    """
    op: Any = OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if op is None:
        raise walk.refused(node, "is no layer here; `stop` in --spec can end the chain in front of it.")
    op(walk, node)
