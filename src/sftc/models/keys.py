"""The keys every model has, read from a config node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sftc.errors import Refused, choose

HEADS = ("linear", "mlp", "conv")
LATER = {"head": "linear", "head_hidden": [128], "head_channels": [64]}  # not in every run folder; and their defaults
COMMON = ("family", "name", "pretrained", "checkpoint", "input_size", "mean", "std", *LATER, "sound")


def check(spec: Mapping[str, Any]) -> None:
    """Refuse values of no meaning.

    Raises:
        Refused: with the key.
    """
    pretrained(spec)
    head(spec)
    input_size(spec)
    per_channel(spec, "mean")
    if min(per_channel(spec, "std") or [1.0]) <= 0:
        raise Refused(f"model.std={spec['std']} must be above zero")


def pretrained(spec: Mapping[str, Any]) -> str:
    """`auto`, `true` or `false`."""
    return choose("model.pretrained", str(spec.get("pretrained", "auto")).lower(), ("auto", "true", "false"))


def input_size(spec: Mapping[str, Any]) -> str | tuple[int, int]:
    """`auto`, `min`, or (height, width) in pixels."""
    value = spec.get("input_size", "auto")
    if value in ("auto", "min"):
        return str(value)
    sides: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(sides) not in (1, 2) or not all(type(n) is int and n > 0 for n in sides):
        raise Refused(f"model.input_size={value} is not auto, min, a number of pixels or [height,width]")
    return sides[0], sides[-1]


def per_channel(spec: Mapping[str, Any], key: str) -> list[float] | None:
    """`mean` or `std` as a list of one number or a number per channel; None for `auto`."""
    value = spec.get(key, "auto")
    if value in ("auto", None):
        return None
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not numbers or not all(isinstance(n, int | float) for n in numbers):
        raise Refused(f"model.{key}={value} is not auto, a number, or a list with a number per channel")
    return [float(n) for n in numbers]


def head(spec: Mapping[str, Any]) -> str:
    """`linear`, `mlp` or `conv`. Raises Refused: no such head, or its widths are none."""
    kind = choose("model.head", spec.get("head", "linear"), HEADS)
    for key in ("head_hidden", "head_channels"):
        if not widths(spec.get(key, [])):
            raise Refused(f"model.{key}={spec[key]} is not a list of widths, such as {LATER[key]}")
    if kind == "mlp" and not spec["head_hidden"]:
        raise Refused("model.head_hidden=[] leaves no hidden layer; use model.head=linear")
    return kind


def widths(value: Any) -> bool:
    """Whether it is a list of whole numbers above zero."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and all(type(n) is int and n > 0 for n in value)


def rest(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one family alone."""
    return {k: v for k, v in spec.items() if k not in COMMON}
