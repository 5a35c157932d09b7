"""From whatever names a model to a model: our file, another framework's, a Python object, another package's."""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnstream.convert import KERAS, ONNX, STATE_DICTS, convert
from rnnstream.convert.hints import Hints, hints
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError
from rnnstream.model.file import SHIPPED, is_model_file, load_file
from rnnstream.model.step import StepModel, try_out

if TYPE_CHECKING:
    from rnnstream.adapters.onnx_step import OnnxStep

log = logging.getLogger("rnnstream")

GROUP = "rnnstream.models"  # of entry points: a name, or a suffix such as ".rwkv" whose function takes the file's path


def load(
    source: str | PathLike[str] | None = None, *, spec: Hints | dict[str, Any] | str | PathLike[str] | None = None
) -> StepModel:
    """A model, ready to step.

    Args:
        source: a model file; another framework's file, as `rnnstream convert` takes it; "module:attribute", a Python object
            with the step-model interface (or a function without arguments that makes one); the name of an entry point of
            the group `rnnstream.models`; absent, the model that ships with the package.
        spec: for another framework's file, what it does not say: a dict, or a TOML or JSON file (docs/convert.md).

    Raises:
        ModelError: the file or object is not there or cannot be used; the sentence says why.
    """
    if source is None:
        source = SHIPPED
    name, path = str(source), Path(source)
    plugins = {plugin.name: plugin for plugin in entry_points(group=GROUP)}
    if not path.exists():
        module, _, attribute = name.partition(":")
        if attribute and all(part.isidentifier() for part in module.split(".")):
            return _object(module, attribute)
        if name in plugins and not name.startswith("."):
            return _made(_loaded(plugins[name]), f"The entry point {name}")
    elif path.suffix in plugins:
        return _made(_loaded(plugins[path.suffix]), f"The entry point {path.suffix}", path)
    if path.suffix.lower() not in STATE_DICTS + KERAS + ONNX or not path.exists() or is_model_file(path):
        if spec is not None:
            raise ModelError(f"{path}: a spec is for another framework's file.")
        return load_file(path)
    found = convert_or_run(path, hints(spec))
    if not isinstance(found, Converted):
        return found
    for note in found.notes:
        log.warning("%s: %s", path, note)  # seen without any set-up: a guess is never made in silence
    return found.network()


def convert_or_run(path: Path, said: Hints) -> Converted | OnnxStep:
    """Another framework's file as a chain of our layers; an ONNX graph that is none, as it is through ONNX Runtime.

    Raises:
        ModelError: neither is possible.
    """
    if path.suffix.lower() not in ONNX:
        return convert(path, said)
    from rnnstream.adapters.onnx_step import OnnxStep, has_hints
    from rnnstream.convert.onnx_chain import NotAChain

    if said.states or said.constants or said.batch or has_hints(path):
        return OnnxStep(path, said)
    try:
        return convert(path, said)
    except NotAChain as no_chain:
        try:
            return OnnxStep(path, said)
        except ModelError as no_step:
            raise ModelError(f"{no_chain} And it cannot be run as it is: {no_step}") from None


def _loaded(plugin: EntryPoint) -> Any:
    try:
        return plugin.load()
    except Exception as problem:  # another package's own code: whatever it raises
        raise ModelError(f"The entry point {plugin.name} ({plugin.value}) cannot be loaded: {problem}.") from problem


def _object(module: str, attribute: str) -> StepModel:
    where = f"{module}:{attribute}"
    try:
        found = importlib.import_module(module)
    except ImportError as problem:
        raise ModelError(f"{where}: the module cannot be imported: {problem}.") from None
    except Exception as problem:  # a user's own code: whatever it raises
        raise ModelError(f"{where}: importing the module failed: {type(problem).__name__}: {problem}.") from problem
    if not hasattr(found, attribute):
        raise ModelError(f"{where}: the module has no {attribute!r}.")
    return _made(getattr(found, attribute), where)


def _made(model: Any, where: str, *arguments: Any) -> StepModel:
    """The object itself, or what a class or function makes; tried out for a step."""
    if callable(model) and not isinstance(model, StepModel):
        try:
            model = model(*arguments)
        except ModelError:
            raise
        except Exception as problem:  # a user's own code: whatever it raises
            raise ModelError(f"{where}: making the model failed: {type(problem).__name__}: {problem}.") from problem
    try_out(model, where)
    return model
