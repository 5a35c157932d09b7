"""The way from the input of a Functional model of Keras to its output, as the calls in its configuration have it.

Keras 2 writes a call as a list of [layer, node, tensor, settings] for each input; Keras 3 as `args` and `kwargs` that hold
tensors with a `keras_history` of [layer, node, tensor].
"""

from __future__ import annotations

from typing import Any

from rnnstream.errors import ModelError

Entry = dict[str, Any]


def route(config: dict[str, Any], model: str) -> tuple[str, list[tuple[str, str | None]]]:
    """The name of the model's input, and its layers from there on, each with the one whose output it adds, if any.

    Args:
        config: of the model.
        model: what it is called, for errors.

    Raises:
        ModelError: it is no chain with residual sums.
    """
    entries = {entry["name"]: entry for entry in config["layers"]}
    start, end = _one(config["input_layers"], model, "inputs"), _one(config["output_layers"], model, "outputs")
    masks = _masks(entries)
    waiting = {name: _sources(entry, masks) for name, entry in entries.items() if name != start and name not in masks}
    previous: dict[str, str] = {}  # of each layer, the one in front
    added: dict[str, str] = {}

    def back(name: str) -> list[str]:
        names = [name]
        while names[-1] != start:
            names.append(previous[names[-1]])
        return names

    while waiting:
        ready = [name for name, sources in waiting.items() if all(source == start or source in previous for source in sources)]
        if not ready:
            raise ModelError(f"The layer {next(iter(waiting))} has an input that does not come from the input of the model.")
        for name in ready:
            sources = waiting.pop(name)
            what = f"The layer {name} ({entries[name]['class_name']})"
            if entries[name]["class_name"] != "Add":
                if len(sources) != 1:
                    raise ModelError(f"{what} has {len(sources)} inputs; a layer of a chain has one.")
                previous[name] = sources[0]
                continue
            if len(sources) != 2:
                raise ModelError(f"{what} adds {len(sources)} outputs; a residual sum has two.")
            longer, other = sources if sources[1] in back(sources[0]) else sources[::-1]
            if other not in back(longer):
                raise ModelError(
                    f"{what} adds two branches, {sources[0]} and {sources[1]}; a residual sum adds what comes out of layers to "
                    "what went into them."
                )
            previous[name], added[name] = longer, other
    names = back(end)[-2::-1]
    for name in previous:
        if name not in names:
            raise ModelError(f"The layer {name} is on a branch of its own, which is no residual sum and leads to no output.")
    return start, [(name, added.get(name)) for name in names]


def _sources(entry: Entry, masks: set[str]) -> list[str]:
    """The layers whose outputs go into an entry."""
    what = f"The layer {entry['name']} ({entry['class_name']})"
    nodes = entry["inbound_nodes"]
    if len(nodes) != 1:
        raise ModelError(f"{what} is used at {len(nodes)} places; a layer of a chain has one.")
    if isinstance(nodes[0], dict):
        given, settings = _leaves(nodes[0]["args"]), nodes[0]["kwargs"]
    else:
        calls = [nodes[0]] if isinstance(nodes[0][0], str) else nodes[0]
        given = [call[:3] for call in calls]
        settings = {key: value for call in calls if len(call) > 3 for key, value in call[3].items()}
    for key, value in settings.items():
        mask = key == "mask" and all(isinstance(leaf, list) and leaf[0] in masks for leaf in _leaves(value))
        if value not in (None, False) and not mask:
            shown = "True" if value is True else "something"
            raise ModelError(f"{what} is called with {key} = {shown}; only its input can be followed, in inference.")
    for source in given:
        if not isinstance(source, list):
            raise ModelError(f"{what} takes {source!r:.60} beside the outputs of layers.")
        if source[2] != 0:
            raise ModelError(
                f"{what} takes output {source[2]} of {source[0]}, a state; only the output itself can be followed."
            )
    return [source[0] for source in given]


def _leaves(value: Any) -> list[Any]:
    """What stands in the arguments of a call: [layer, node, tensor] for a tensor, anything else as it is."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        return [value["config"]["keras_history"]]
    return [] if value is None else [value]


def _masks(entries: dict[str, Entry]) -> set[str]:
    """The operations that Embedding(mask_zero=True) leaves in a graph of Keras 3: whether an id is 0, which none is here."""
    masks: set[str] = set()
    if any(entry["class_name"] == "Embedding" and entry["config"].get("mask_zero") for entry in entries.values()):
        for name, entry in entries.items():
            if entry["class_name"] in ("NotEqual", "LogicalOr"):
                given = _leaves(entry["inbound_nodes"][0]["args"])
                if given[1:] == [0] or all(isinstance(source, list) and source[0] in masks for source in given):
                    masks.add(name)
    return masks


def _one(given: Any, model: str, what: str) -> str:
    """The name in a list of inputs or outputs, which has one entry or, in Keras 3, is that entry."""
    entries = [given] if isinstance(given, list) and given and isinstance(given[0], str) else given
    if not isinstance(entries, list) or len(entries) != 1:
        raise ModelError(f"{model} has {len(entries)} {what}; a stream has one.")
    if entries[0][2] != 0:
        raise ModelError(f"{model} gives a state of {entries[0][0]}; only its output itself can be followed.")
    return str(entries[0][0])
