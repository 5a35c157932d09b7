"""Keras's layers over the last few tokens.

They can be streamed where zeros are put in front of the sequence, exactly as many as their window needs to give its first
output at the first token, and none behind the sequence.
"""

from __future__ import annotations

from collections.abc import Callable

from rnnstream.convert import parts
from rnnstream.convert.keras_graph import Layer
from rnnstream.convert.keras_settings import Chain, activated, one_int
from rnnstream.convert.parts import Part


def conv(layer: Layer, chain: Chain) -> list[Part]:
    """Conv1D, causal or behind a ZeroPadding1D that makes it so."""
    config = layer.config
    w, dilation, n = one_int(layer, "kernel_size"), one_int(layer, "dilation_rate", 1), one_int(layer, "filters")
    _along_time(layer)
    if one_int(layer, "groups", 1) != 1:
        raise layer.refuse("has groups; only a convolution over all inputs is known here")
    before = (w - 1) * dilation
    if config["padding"] != "causal":
        _filled(layer, chain, before)
    k, chain.size = chain.size, n
    kernel, b = layer.needed("kernel", w, k, n), layer.weight("bias", n)
    return activated(parts.conv(layer.name, kernel.transpose(2, 0, 1), b, dilation), layer, chain)


def pool(mean_or_max: str) -> Callable[[Layer, Chain], list[Part]]:
    """AveragePooling1D or MaxPooling1D behind a ZeroPadding1D; the zeros take part in the mean and the maximum."""

    def read(layer: Layer, chain: Chain) -> list[Part]:
        window = one_int(layer, "pool_size")
        _along_time(layer, strides=window)
        _filled(layer, chain, window - 1)
        return [Part("pool", {"function": mean_or_max, "window": window}, name=layer.name)] if window > 1 else []

    return read


def _along_time(layer: Layer, *, strides: int = 1) -> None:
    if one_int(layer, "strides", strides) != 1:
        raise layer.refuse("has strides, so it gives fewer outputs than there are tokens")
    if layer.config.get("data_format") == "channels_first":
        raise layer.refuse("has channels_first; only channels_last is read here")


def _filled(layer: Layer, chain: Chain, zeros: int) -> None:
    """Hold that the window of a layer is filled up by exactly these zeros in front of the sequence, and take them."""
    found = chain.padding[1] if chain.padding is not None else 0
    padding = layer.config["padding"]
    if zeros and (padding != "valid" or found != zeros):
        looks = "looks ahead" if padding == "same" else f"needs {zeros} zeros in front of the sequence and gets {found}"
        raise layer.refuse(
            f"has padding={padding!r:.20} and {looks}; a Conv1D with padding='causal', or a ZeroPadding1D(({zeros}, 0)) "
            "directly in front of padding='valid', can be streamed"
        )
    chain.padding = None if zeros else chain.padding


def padding(layer: Layer, chain: Chain) -> list[Part]:
    """ZeroPadding1D, kept until the window behind it takes it."""
    given = layer.config["padding"]
    left, right = given if isinstance(given, list) else (given, given)
    if right or type(left) is not int or left < 0 or chain.padding is not None:
        raise layer.refuse(f"has padding {given!r:.40}; only zeros in front of the sequence, as (2, 0), can be streamed")
    _along_time(layer)
    chain.padding = (layer, left) if left else None
    return []
