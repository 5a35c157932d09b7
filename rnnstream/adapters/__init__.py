"""Step models that another library computes: `OnnxStep` (ONNX Runtime) and `TorchStep` (PyTorch).

Neither library is imported before its class is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnstream.adapters.onnx_step import OnnxStep
    from rnnstream.adapters.torch_step import TorchStep

__all__ = ["OnnxStep", "TorchStep"]


def __getattr__(name: str) -> Any:
    if name == "OnnxStep":
        from rnnstream.adapters.onnx_step import OnnxStep

        return OnnxStep
    if name == "TorchStep":
        from rnnstream.adapters.torch_step import TorchStep

        return TorchStep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
