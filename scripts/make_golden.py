"""Write tests/golden/torch_cells.npz: what PyTorch's own recurrent layers answer, in float32.

    pip install -e . --group train
    python scripts/make_golden.py

Shapes: D inputs, H hidden units, L layers, T steps, V tokens, E numbers an embedding. Keys are `{case}_{L}/{name}`;
weights have PyTorch's names (`weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_ih_l1`, ...).

    rnn_tanh, rnn_relu, gru, lstm with L = 1 and 2: the inputs `x` [T, D], the top layer's states `output` [T, H], the
        last states `h_n` [L, H] and, for the LSTM, `c_n` [L, H].
    token_rnn_tanh with L = 1: token ids `ids` [T], one-hot, through the layer and a linear head (`linear.weight`
        [V, H], `linear.bias` [V]): `output` [T, H], `h_n` [L, H], `logits` [T, V] and `probabilities` [T, V].
    token_gru with L = 1: the same, with an embedding (`embedding.weight` [V, E]) in place of the one-hot vectors.

States begin at zero. Weights and inputs are drawn by NumPy in float64 and rounded, so that their mantissas are full.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "torch_cells.npz"
D, H, T, V, E = 5, 7, 12, 6, 4
SEED = 1


def draw(rng: np.random.Generator, module: nn.Module) -> None:
    """Fill every weight of the module from the uniform distribution over [-1, 1)."""
    for parameter in module.parameters():
        parameter.copy_(torch.from_numpy(rng.uniform(-1, 1, tuple(parameter.shape)).astype(np.float32)))


def run(cell: nn.RNNBase, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The cell's weights, and its states over the inputs x [T, D]."""
    output, last = cell(x)
    states = dict(zip(("h_n", "c_n"), last, strict=True)) if isinstance(cell, nn.LSTM) else {"h_n": last}
    return {**cell.state_dict(), "output": output, **states}


def dense_case(rng: np.random.Generator, cell: nn.RNNBase) -> dict[str, torch.Tensor]:
    """A cell over dense inputs."""
    draw(rng, cell)
    x = torch.from_numpy(rng.uniform(-1, 1, (T, D)).astype(np.float32))
    return {"x": x, **run(cell, x)}


def token_case(rng: np.random.Generator, cell: nn.RNNBase, embedding: nn.Embedding | None) -> dict[str, torch.Tensor]:
    """Tokens, embedded or one-hot, through a cell and a linear head."""
    linear = nn.Linear(H, V)
    parts = {"linear": linear} if embedding is None else {"embedding": embedding, "linear": linear}
    for part in (cell, *parts.values()):
        draw(rng, part)
    ids = torch.from_numpy(rng.integers(0, V, T))
    states = run(cell, nn.functional.one_hot(ids, V).float() if embedding is None else embedding(ids))
    logits = linear(states["output"])
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    return {"ids": ids, **weights, **states, "logits": logits, "probabilities": logits.softmax(-1)}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    cases = {}
    for layers in (1, 2):
        cases[f"rnn_tanh_{layers}"] = dense_case(rng, nn.RNN(D, H, layers, nonlinearity="tanh"))
        cases[f"rnn_relu_{layers}"] = dense_case(rng, nn.RNN(D, H, layers, nonlinearity="relu"))
        cases[f"gru_{layers}"] = dense_case(rng, nn.GRU(D, H, layers))
        cases[f"lstm_{layers}"] = dense_case(rng, nn.LSTM(D, H, layers))
    cases["token_rnn_tanh_1"] = token_case(rng, nn.RNN(V, H), None)
    cases["token_gru_1"] = token_case(rng, nn.GRU(E, H), nn.Embedding(V, E))

    arrays = {f"{case}/{name}": value.numpy() for case, values in cases.items() for name, value in values.items()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez(OUTPUT, **arrays)
    for key, array in arrays.items():
        print(f"{key:40} {array.dtype!s:8} {array.shape}")
    print(f"{OUTPUT.name}: {len(arrays)} arrays, {OUTPUT.stat().st_size} bytes, by PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
