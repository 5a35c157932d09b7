"""Step layers over the last few tokens. The tokens that have to be remembered are their state, like any other.

    B rows of a batch    K inputs    N outputs    W tokens that are looked at    M tokens that are remembered

A state is the last M inputs, the oldest first. At the start they are zeros: a sequence is padded in front, never behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.model.layers import StepLayer
from rnnstream.model.spec import Layer
from rnnstream.model.tiles import Product

Array = npt.NDArray[Any]


class Conv(StepLayer):
    """Causal convolution over time, as Keras Conv1D with padding="causal". W is its `kernel`, d its `dilation`.

    ::

        y<t> = b + sum over j = 0 ... W-1 of w[:, j] x<t - (W-1-j) d>

    State: the last M = (W-1) d inputs, M * K numbers.
    """

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        w = tensors["w"]  # [N, W, K]
        self.state_size, self.inputs, self.dilation = layer.state_size, layer.inputs, layer.keys["dilation"]
        self.product, self.b = Product(w.reshape(len(w), -1)), tensors["b"].copy()
        self.products = {layer.tensors["w"]: self.product}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, M * K], [B, K] -> [B, M * K], [B, N]
        """The window moved on by one token, and its product."""
        window = np.concatenate([state, x], axis=1)
        tokens = window.reshape(len(x), self.state_size // self.inputs + 1, self.inputs)  # [B, M + 1, K]
        taps = tokens[:, :: self.dilation]  # [B, W, K]
        y = self.product(taps.reshape(len(x), self.product.shape[1]))
        y += self.b
        return window[:, self.inputs :], y


class Pool(StepLayer):
    """The mean, or the largest, of each feature over the last W tokens, with W its `window`.

    State: the last M = W-1 inputs, M * K numbers.
    """

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size, self.inputs, self.window = layer.state_size, layer.inputs, layer.keys["window"]
        self.mean = layer.keys["function"] == "mean"
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, M * K], [B, K] -> [B, M * K], [B, K]
        """The window moved on by one token, and what it comes to."""
        y = x.copy()
        for start in range(0, self.state_size, self.inputs):  # token by token: a sum in one go may have other bits
            past = state[:, start : start + self.inputs]
            if self.mean:
                y += past
            else:
                np.maximum(y, past, out=y)
        if self.mean:
            y /= self.window
        return np.concatenate([state, x], axis=1)[:, self.inputs :], y
