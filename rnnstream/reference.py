"""The network of the RNN-from-scratch article, over a whole sequence, in float64: what a stream has to equal.

The article builds a recurrent network in NumPy out of gates, activations, layers and a model. Here are the same parts
under the same names, straight from the two equations, with no thought of speed. The rest of rnnstream gives these
numbers one token at a time; its tests compare it with this file, which imports none of it::

    a<0> = 0
    a<t> = g1(waa a<t-1> + wax x<t> + ba)        the hidden state, g1 = tanh
    y<t> = g2(wya a<t> + by)                     the prediction of x<t+1>, g2 = softmax

What was put right in the article's listing: it looped over a length, which is an int, instead of over the tokens; it
never assigned `prev_a`, so that no state was carried over and every token was the first; it computed the output from
an `a` that was not defined; it had no biases; its exp overflowed, because the largest logit was not subtracted first;
and its `diff` overwrote the argument that it was given.

Shapes at the right margin: V tokens in the vocabulary, H hidden units, T tokens in the sequence. All is float64.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def check_token(token: int, size: int) -> int:
    """The token id as an int; an IndexError if it is not one of the `size` ids, which count from 0."""
    if not 0 <= (index := operator.index(token)) < size:
        raise IndexError(f"token id {index} is out of range: a vocabulary of {size} has the ids 0 to {size - 1}")
    return index


class Activation(Protocol):
    """What can stand in for g1 or g2."""

    def forward(self, x: Array, /) -> Array:
        """The activation of x, as a new array of its shape."""


class Sigmoid:
    """g(x) = 1 / (1 + exp(-x)), for each element."""

    def forward(self, x: Array) -> Array:
        """The sigmoid of x; exp is given -|x| alone, so that it cannot overflow."""
        e = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, e) / (1.0 + e)


class Tanh:
    """g(x) = tanh(x), for each element."""

    def forward(self, x: Array) -> Array:
        """The hyperbolic tangent of x."""
        return np.tanh(x)


class Softmax:
    """y^[i] = exp(x[i]) / sum over j of exp(x[j]), the same for x and for x - max(x); and its cross-entropy."""

    def predict(self, x: Array) -> Array:
        """The probabilities y^ of the logits x."""
        e = np.exp(x - x.max())
        y_hat: Array = e / e.sum()  # [V] -> [V]
        return y_hat

    forward = predict  # the name that an activation goes by

    def loss(self, x: Array, y: int) -> float:
        """The cross-entropy -ln y^[y] of the token y, in nats; finite even where y^[y] is too small for a float."""
        shifted = x - x.max()
        return float(np.log(np.exp(shifted).sum()) - shifted[check_token(y, len(x))])  # [V], id -> number

    def diff(self, x: Array, y: int) -> Array:
        """The derivative of `loss` by the logits, y^ - onehot(y), as a new array."""
        dx = self.predict(x)
        dx[check_token(y, len(x))] -= 1.0
        return dx  # [V], id -> [V]


class AddGate:
    """The sum of two arrays."""

    def forward(self, x1: Array, x2: Array) -> Array:
        """x1 + x2."""
        return x1 + x2


class MultiplyGate:
    """A matrix times a vector."""

    def forward(self, w: Array, x: Array) -> Array:
        """W x."""
        return w @ x


class RNNLayer:
    """One step of the network, which is one layer of it when it is unrolled in time.

    Its parts stay on it for whoever looks: a is the state a<t>, z the logits before g2, y the prediction y<t>.
    """

    mul_aa: Array  # waa a<t-1>, [H]
    mul_ax: Array  # wax x<t>, [H]
    add: Array  # what g1 is given, [H]
    a: Array  # a<t>, [H]
    mul_ya: Array  # wya a<t>, [V]
    z: Array  # what g2 is given, [V]
    y: Array  # y<t>, [V]

    def __init__(self, g1: Activation, g2: Activation) -> None:
        self.g1 = g1
        self.g2 = g2

    def forward(
        self, x: Array, prev_a: Array, waa: Array, wax: Array, wya: Array, ba: Array, by: Array
    ) -> None:  # [V], [H], [H, H], [H, V], [V, H], [H], [V]
        """Compute a<t> and y<t> from x<t> and a<t-1> by the two equations, and keep every part of them."""
        multiply, add = MultiplyGate(), AddGate()
        self.mul_aa = multiply.forward(waa, prev_a)  # [H, H], [H] -> [H]
        self.mul_ax = multiply.forward(wax, x)  # [H, V], [V] -> [H]
        self.add = add.forward(add.forward(self.mul_aa, self.mul_ax), ba)
        self.a = self.g1.forward(self.add)
        self.mul_ya = multiply.forward(wya, self.a)  # [V, H], [H] -> [V]
        self.z = add.forward(self.mul_ya, by)
        self.y = self.g2.forward(self.z)


class Model:
    """A network that reads token ids, each as a one-hot vector, and predicts the next one after each.

    Its weights are the attributes `waa`, `wax`, `wya`, `ba` and `by`, which may be assigned. A new model has zeros for
    biases; its matrices are uniform within ±sqrt(1/n), where n counts the inputs of the matrix.

    Args:
        word_dim: V, the number of tokens in the vocabulary.
        hidden_dim: H, the number of hidden units.
        bptt_truncate: over how many steps training follows the gradient back; nothing in this file looks at it.
        g1: the activation of the hidden state; Tanh if not given.
        g2: the activation of the output; Softmax if not given.
        seed: of the random weights; None draws others each time.
    """

    def __init__(
        self,
        word_dim: int,
        hidden_dim: int = 100,
        bptt_truncate: int = 4,
        *,
        g1: Activation | None = None,
        g2: Activation | None = None,
        seed: int | None = 0,
    ) -> None:
        self.word_dim = word_dim
        self.hidden_dim = hidden_dim
        self.bptt_truncate = bptt_truncate
        self.g1 = Tanh() if g1 is None else g1
        self.g2 = Softmax() if g2 is None else g2

        rng = np.random.default_rng(seed)

        def uniform(outputs: int, inputs: int) -> Array:
            bound = math.sqrt(1 / inputs)
            return rng.uniform(-bound, bound, (outputs, inputs))

        self.waa = uniform(hidden_dim, hidden_dim)  # [H, H]
        self.wax = uniform(hidden_dim, word_dim)  # [H, V]
        self.wya = uniform(word_dim, hidden_dim)  # [V, H]
        self.ba = np.zeros(hidden_dim)  # [H]
        self.by = np.zeros(word_dim)  # [V]

    def forward_propagation(self, x: Sequence[int] | NDArray[np.integer]) -> list[RNNLayer]:
        """Run the whole sequence from a<0> = 0.

        Args:
            x: the token ids, T of them, each in [0, V).

        Returns:
            One layer for each token, so that `layers[t - 1].a` is a<t>; none for no tokens.

        Raises:
            IndexError: an id is out of range.
        """
        layers: list[RNNLayer] = []
        prev_a = np.zeros(self.hidden_dim)
        for token in x:
            onehot = np.zeros(self.word_dim)
            onehot[check_token(token, self.word_dim)] = 1.0
            layer = RNNLayer(self.g1, self.g2)
            layer.forward(onehot, prev_a, self.waa, self.wax, self.wya, self.ba, self.by)
            layers.append(layer)
            prev_a = layer.a
        return layers

    def predict(self, x: Sequence[int] | NDArray[np.integer]) -> list[int]:
        """The id of the most likely next token after each token of x, the lowest first among equals."""
        return [int(layer.y.argmax()) for layer in self.forward_propagation(x)]
