"""Write tests/golden/torch.npz: state_dicts of PyTorch and what PyTorch's own layers answer, in float32.

    pip install -e . --group frameworks
    python scripts/golden_torch.py

Shapes: D inputs, H hidden units, L layers, T steps, V tokens, E numbers an embedding. Keys are `{case}/{name}`:

    file      the state_dict as the bytes of a .safetensors file
    spec      what the file does not say, as JSON: "" where nothing is missing
    xs        the inputs: [T] ids or [T, D]
    output    [T, V] logits of the linear layer at the end, or [T, H] where there is none
    h, c      [L, H] the last states; c only for an LSTM

Cases are `{rnn_tanh, rnn_relu, gru, lstm}_{1, 2, 3}_{dense, token}`: a token case has an embedding in front and a linear
layer behind. States begin at zero. Weights and inputs are drawn by NumPy in float64 and rounded, so that their mantissas are
full. PyTorch has no GRU whose reset gate works before the product.

One more case, `around`, has what may stand around the cells: `output` [T, V] and nothing about states.
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "torch.npz"
D, H, T, V, E = 5, 7, 12, 6, 4
CELLS = {
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
}


class Network(nn.Module):
    """Perhaps an embedding, a stack of cells, perhaps a linear layer."""

    def __init__(self, cell: str, layers: int, token: bool) -> None:
        super().__init__()
        make, keys = CELLS[cell]
        self.emb = nn.Embedding(V, E) if token else None
        self.rnn = make(E if token else D, H, layers, **keys)
        self.fc = nn.Linear(H, V) if token else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        """[T] or [T, D] -> [T, V] or [T, H], and the last states."""
        y, last = self.rnn(x if self.emb is None else self.emb(x))
        return y if self.fc is None else self.fc(y), last


class Around(nn.Module):
    """Convolution, normalisations, pooling, a residual and activations around a GRU; no number of the spec is a default."""

    SPEC: ClassVar = {
        "layers": [
            {"from": "conv", "causal": True, "dilation": 2, "activation": "relu"},
            {"from": "batch", "epsilon": 1e-3},
            {"pool": "mean", "window": 3},
            {"from": "wide", "activation": "tanh"},
            {"from": "gru"},
            {"residual": "wide"},
            {"from": "layer", "kind": "layernorm", "epsilon": 1e-4},
            {"from": "out.0"},
            {"activation": "sigmoid"},
        ]
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch = nn.Conv1d(D, 6, 3, dilation=2), nn.BatchNorm1d(6, eps=1e-3)
        self.wide, self.gru = nn.Linear(6, H), nn.GRU(H, H)
        self.layer, self.out = nn.LayerNorm(H, eps=1e-4), nn.Sequential(nn.Linear(H, V), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, V]
        """The whole sequence, padded with zeros in front."""
        y = self.batch(self.conv(nn.functional.pad(x.T, (4, 0))[None]).relu())
        y = nn.functional.avg_pool1d(nn.functional.pad(y, (2, 0)), 3, 1)[0].T
        wide = self.wide(y).tanh()
        return self.out(self.layer(self.gru(wide)[0] + wide))


def spec(cell: str, token: bool) -> str:
    """Only a vanilla RNN needs one: for its nonlinearity, and so for the order too."""
    if not cell.startswith("rnn"):
        return ""
    rnn = {"from": "rnn", "activation": cell.removeprefix("rnn_")}
    return json.dumps({"layers": [{"from": "emb"}, rnn, {"from": "fc"}] if token else [rnn]})


def draw(rng: np.random.Generator, network: nn.Module) -> None:
    """Fill every weight and statistic, variances with positive numbers."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            numbers = rng.uniform(0.5 if "running_var" in name else -1, 1, tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(numbers.astype(np.float32)))


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    arrays: dict[str, np.ndarray] = {}
    for cell in CELLS:
        for layers in (1, 2, 3):
            for kind in ("dense", "token"):
                network, token = Network(cell, layers, kind == "token"), kind == "token"
                draw(rng, network)
                xs = rng.integers(0, V, T) if token else rng.uniform(-1, 1, (T, D)).astype(np.float32)
                output, last = network(torch.from_numpy(xs))
                case = f"{cell}_{layers}_{kind}"
                arrays |= {
                    f"{case}/file": np.frombuffer(save(network.state_dict()), np.uint8),
                    f"{case}/spec": np.array(spec(cell, token)),
                    f"{case}/xs": xs,
                    f"{case}/output": output.numpy(),
                    f"{case}/h": (last[0] if cell == "lstm" else last).numpy(),
                }
                if cell == "lstm":
                    arrays[f"{case}/c"] = last[1].numpy()
    around, xs = Around().eval(), rng.uniform(-1, 1, (T, D)).astype(np.float32)
    draw(rng, around)
    arrays |= {
        "around/file": np.frombuffer(save(around.state_dict()), np.uint8),
        "around/spec": np.array(json.dumps(Around.SPEC)),
        "around/xs": xs,
        "around/output": around(torch.from_numpy(xs)).numpy(),
    }
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT.name}: {len(arrays)} arrays, {OUTPUT.stat().st_size} bytes, by PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
