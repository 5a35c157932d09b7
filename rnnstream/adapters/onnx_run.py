"""ONNX Runtime on one thread, and its errors as sentences."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

PROVIDER = "CPUExecutionProvider"


def runtime() -> Any:
    """The package onnxruntime.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("To run an ONNX graph takes onnxruntime: pip install 'rnnstream[onnx]'.") from None
    return onnxruntime


def session(graph: Any) -> Any:
    """A session on one thread.

    Raises:
        ModelError: ONNX Runtime does not take the graph.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what it would print comes as an exception
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[PROVIDER])
    except Exception as problem:  # its errors have no class of their own above them; protobuf's limit is 2 GiB
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} does not take this graph: {shortened(problem)}") from None


def run(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:
    """One run that may fail.

    Raises:
        ModelError: it did.
    """
    try:
        return list(session.run(names, feed))
    except Exception as problem:  # onnxruntime's errors have no class of their own above them
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise ModelError(
            f"A step with {shapes} fails in ONNX Runtime: {shortened(problem)} If a size is wrong there that the graph leaves "
            "open, give it as `size` or export the graph with it."
        ) from None


def shortened(problem: Exception) -> str:
    """The first line of an error of ONNX Runtime."""
    line = str(problem).strip().partition("\n")[0].rpartition("Status Message: ")[2]
    return (line if len(line) < 300 else line[:300] + " ...").rstrip(".") + "."
