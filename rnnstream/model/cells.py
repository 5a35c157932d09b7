"""The recurrent cells: step layers that give out the first numbers of their new state.

B rows of a batch    H size of the layer    K inputs

Their steps also take one row without the axis B, see `StepLayer.for_one`: slices are of the last axis for that reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.model.activations import ACTIVATIONS
from rnnstream.model.layers import StepLayer, input_transform, products_of
from rnnstream.model.spec import Layer
from rnnstream.model.tiles import Product

Array = npt.NDArray[Any]


class RNN(StepLayer):
    """The vanilla recurrence (Elman 1990), as in torch.nn.RNN and keras SimpleRNN with their two biases added up.

    ::

        a<t> = g1(waa a<t-1> + wax x<t> + ba)

    State: a, H numbers.
    """

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size = layer.state_size
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        self.recur = Product(tensors["waa"])
        self.g1 = ACTIVATIONS[layer.keys["activation"]]
        self.products = {layer.tensors["waa"]: self.recur} | products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, H], [B, K] -> [B, H], [B, H]
        """a<t>, twice."""
        z = self.recur(state)
        z += self.drive(x)
        a = self.g1(z)
        return a, a


class GRU(StepLayer):
    """The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), in both ways to reset.

    Gates are stacked in the order r, z, n: `waa` [3H, H], `wax` [3H, K], `ba` [3H]. With reset "after" the recurrent product
    (torch.nn.GRU, keras reset_after=True, cuDNN) the candidate has a recurrent bias `bh` [H] of its own. With g1 its
    `activation` (tanh) and s its `gate` (sigmoid)::

        r = s(waa_r a<t-1> + wax_r x<t> + ba_r)
        z = s(waa_z a<t-1> + wax_z x<t> + ba_z)
        n = g1(r * (waa_n a<t-1> + bh) + wax_n x<t> + ba_n)          reset after
        n = g1(waa_n (r * a<t-1>) + wax_n x<t> + ba_n)               reset before (the paper; keras reset_after=False)
        a<t> = n + z * (a<t-1> - n)                                  that is (1 - z) * n + z * a<t-1>

    State: a, H numbers.
    """

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size = h = layer.state_size
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        self.g1, self.gate = ACTIVATIONS[layer.keys["activation"]], ACTIVATIONS[layer.keys["gate"]]
        waa, name = tensors["waa"], layer.tensors["waa"]
        if layer.keys["reset"] == "after":
            self.bh: Array | None = tensors["bh"].copy()
            self.recur = Product(waa)
            self.products = {name: self.recur}
        else:
            self.bh = None
            self.recur, self.recur_n = Product(waa[: 2 * h]), Product(waa[2 * h :])
            self.products = {f"{name} (r, z)": self.recur, f"{name} (n)": self.recur_n}
        self.products |= products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, H], [B, K] -> [B, H], [B, H]
        """a<t>, twice."""
        h = self.state_size
        drive, recur = self.drive(x), self.recur(state)
        gates = self.gate(drive[..., : 2 * h] + recur[..., : 2 * h])
        r, z = gates[..., :h], gates[..., h:]
        if self.bh is not None:
            n = recur[..., 2 * h :] + self.bh
            n *= r
        else:
            n = self.recur_n(r * state)
        n += drive[..., 2 * h :]
        n = self.g1(n)
        a = state - n
        a *= z
        a += n
        return a, a


class LSTM(StepLayer):
    """Long short-term memory with a forget gate (Gers et al. 2000), as in torch.nn.LSTM with its two biases added up.

    Gates are stacked in the order i, f, g, o: `waa` [4H, H], `wax` [4H, K], `ba` [4H]. With g1 its `activation` (tanh) and
    s its `gate` (sigmoid)::

        i = s(waa_i a<t-1> + wax_i x<t> + ba_i)        g = g1(waa_g a<t-1> + wax_g x<t> + ba_g)
        f = s(waa_f a<t-1> + wax_f x<t> + ba_f)        o = s(waa_o a<t-1> + wax_o x<t> + ba_o)
        c<t> = f * c<t-1> + i * g                      a<t> = o * g1(c<t>)

    State: a then the cell c, 2H numbers.
    """

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size, self.h = layer.state_size, layer.outputs
        self.g1, self.gate = ACTIVATIONS[layer.keys["activation"]], ACTIVATIONS[layer.keys["gate"]]
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        self.recur = Product(tensors["waa"])
        self.products = {layer.tensors["waa"]: self.recur} | products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 2H], [B, K] -> [B, 2H], [B, H]
        """The new a and c, and a."""
        h = self.h
        s = self.recur(state[..., :h])
        s += self.drive(x)
        i_f, g, o = self.gate(s[..., : 2 * h]), self.g1(s[..., 2 * h : 3 * h]), self.gate(s[..., 3 * h :])
        new = np.empty_like(state, order="C")  # whatever came in: a sum over another layout has other bits
        a, c = new[..., :h], new[..., h:]
        np.multiply(i_f[..., h:], state[..., h:], out=c)
        g *= i_f[..., :h]
        c += g
        np.multiply(o, self.g1(c), out=a)
        return new, a
