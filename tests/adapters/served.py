"""Models that `rnnstream serve` takes by "tests.adapters.served:NAME"."""

from rnnstream import Input, Output
from rnnstream.adapters import OnnxStep, TorchStep

from .graphs import H, K, V, elman


def onnx_alone():
    return OnnxStep(elman().SerializeToString(), {"name": "alone"})


def onnx_together():
    return OnnxStep(elman(ids=True, x=("B",), end="Softmax").SerializeToString(), {"batch": True})


def _torch(**more):
    import torch

    torch.manual_seed(0)

    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = torch.nn.GRUCell(K, H), torch.nn.Linear(H, V)

        def forward(self, x, h):
            h = self.cell(x, h)
            return self.out(h), h

    return TorchStep(Cell(), input=Input("dense", K), output=Output("categorical", V), state=torch.zeros(1, H), **more)


def torch_alone():
    return _torch()


def torch_together():
    return _torch(batch=True)
