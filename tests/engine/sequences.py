"""What engines hold, and what they would hold if each session were run as one whole sequence."""

from __future__ import annotations

from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.model.step import StepModel


def everything(engine: Engine) -> dict[str, tuple[int, bytes]]:
    """Every open session with its step count and the bytes of its state."""
    return {name: (engine.info(name)["t"], engine.state(name).tobytes()) for name in sorted(engine.sessions())}


def moved(model: StepModel, tokens: dict[str, list[Any]]) -> dict[str, tuple[int, bytes]]:
    """What `everything` gives if these sessions have had these tokens."""
    return {name: (len(xs), model.run(xs).tobytes()) for name, xs in sorted(tokens.items())}
