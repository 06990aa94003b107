"""Models: a config node in, `model(batch.inputs) -> logits [N, out_dim]` out.

Families are an explicit table: our own small nets, and every architecture timm and torchvision know by name.
Pictures enter as raw bytes; normalising and resizing is the model's first module, so that a teacher and a student
cannot disagree about a loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from sftc.errors import Refused, choose
from sftc.models import own, size, weights
from sftc.models.vision import Prepare, Vision

HUBS = ("timm", "torchvision")
FAMILIES = (*own.NETS, *HUBS)
COMMON = ("family", "name", "pretrained", "checkpoint", "input_size", "mean", "std")
GREY = 0.5  # mean and std where nothing was trained before: inputs in [-1, 1]


def check(spec: Mapping[str, Any]) -> None:
    """Find what is wrong with a model node before any data is read.

    Raises:
        Refused: unknown name, bad values, an unreadable checkpoint, `pretrained=true` and no weights to be had.
    """
    family, name = choose("model.family", spec["family"], FAMILIES), spec["name"]
    choose("model.pretrained", _word(spec.get("pretrained", "auto")), ("auto", "true", "false"))
    _channel_values(spec, "mean")
    _channel_values(spec, "std")
    _input_size(spec)
    if spec.get("checkpoint"):
        weights.read(spec["checkpoint"])
    if family in own.NETS:
        if _word(spec.get("pretrained")) == "true" and not spec.get("checkpoint"):
            raise Refused(
                f"model.pretrained=true: nobody published weights for {name}; give model.checkpoint=PATH"
            )
        own.check(family, **_own_keys(spec))
        return
    hub = _hub(family)
    hub.check(name)
    with size.dry():
        hub.make(name, 2, hub.card(name).size, _hub_keys(spec))
    if _word(spec.get("pretrained")) == "true" and not spec.get("checkpoint"):
        try:
            hub.find(name)
        except weights.Unavailable as error:
            raise _no_weights(name, error) from None


def build(spec: Mapping[str, Any], *, out_dim: int, shape: tuple[int, ...]) -> Vision:
    """The model a node describes, for inputs of `shape` (C, H, W) or (D,) and `out_dim` numbers per row.

    Draws its first weights from torch's global generator. `model.facts` says in plain types what was chosen; the
    same node with `pretrained=False, checkpoint=None` and the facts' input_size, mean and std rebuilds it offline.

    Raises:
        Refused: the node, the data's shape and the weights at hand do not fit together.
    """
    choose("model.family", spec["family"], FAMILIES)
    if spec["family"] in own.NETS:
        model = _build_own(spec, out_dim, shape)
    else:
        model = _build_hub(spec, out_dim, shape)
    model.facts["params"] = sum(p.numel() for p in model.parameters())
    if spec.get("checkpoint"):
        model.facts["checkpoint"] = weights.load(model, spec["checkpoint"])
        model.facts["pretrained"] = "checkpoint"
    return model


def _build_own(spec: Mapping[str, Any], out_dim: int, shape: tuple[int, ...]) -> Vision:
    family = spec["family"]
    facts: dict[str, Any] = {"family": family, "name": spec["name"], "pretrained": "no"}
    if len(shape) == 1:
        if not own.reads_tables(family):
            raise Refused(
                f"model={spec['name']} reads pictures, the data has rows of {shape[0]} numbers; use model=mlp"
            )
        return Vision(nn.Identity(), own.make(family, shape, out_dim, **_own_keys(spec)), ["net.head"], facts)
    wanted = _input_size(spec)
    if wanted == "auto":
        wanted = (max(shape[1], size.LEAST), max(shape[2], size.LEAST))
    pixels = (size.LEAST, size.LEAST) if wanted == "min" else _pair(wanted)
    prepare = _prepare(spec, shape, shape[0], pixels, [GREY], [GREY], facts)
    return Vision(
        prepare, own.make(family, (shape[0], *pixels), out_dim, **_own_keys(spec)), ["net.head"], facts
    )


def _build_hub(spec: Mapping[str, Any], out_dim: int, shape: tuple[int, ...]) -> Vision:
    name, hub, keys = spec["name"], _hub(spec["family"]), _hub_keys(spec)
    hub.check(name)
    if len(shape) == 1:
        raise Refused(
            f"model.name={name} reads pictures, the data has rows of {shape[0]} numbers; use model=mlp"
        )
    if shape[0] not in (1, 3):
        raise Refused(
            f"model.name={name} reads grey or RGB pictures, the data has {shape[0]} channels; use simple_cnn"
        )
    file, said = _published(spec, hub)
    card = hub.card(name)
    stands_in = bool(spec.get("checkpoint")) and _word(spec.get("pretrained")) == "true"
    trained = file is not None or stands_in
    wanted = (card.size, card.size) if trained and _input_size(spec) == "auto" else _input_size(spec)
    pixels = size.fit(spec["family"], hub, name, keys, wanted, (shape[1], shape[2]))
    facts: dict[str, Any] = {"family": spec["family"], "name": name, "pretrained": said}
    mean, std = (card.mean, card.std) if trained else ([GREY] * 3, [GREY] * 3)
    prepare = _prepare(spec, shape, 3, pixels, mean, std, facts)
    try:
        net = hub.make(name, out_dim, max(pixels), keys, file)
    except weights.Unavailable as error:  # a damaged file in the cache
        if _word(spec.get("pretrained")) == "true":
            raise _no_weights(name, error) from None
        return build({**spec, "pretrained": False}, out_dim=out_dim, shape=shape).say(
            pretrained=f"unavailable: {error}"
        )
    return Vision(prepare, net, [f"net.{path}" for path in hub.heads(name, max(pixels), keys)], facts)


def _published(spec: Mapping[str, Any], hub: ModuleType) -> tuple[Any, str]:
    """The published weights to load (None: go on untrained), and what to say about it."""
    wish = _word(spec.get("pretrained", "auto"))
    if wish == "false" or spec.get("checkpoint"):
        return None, "no"
    try:
        return hub.fetch(spec["name"]), "loaded"
    except weights.Unavailable as error:
        if wish == "true":
            raise _no_weights(spec["name"], error) from None
        return None, f"unavailable: {error}"


def _no_weights(name: str, error: Exception) -> Refused:
    return Refused(
        f"model.pretrained=true: {error}; give model.checkpoint=PATH, or model.pretrained=auto for {name} untrained"
    )


def _prepare(
    spec: Mapping[str, Any],
    shape: tuple[int, ...],
    channels: int,
    pixels: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    facts: dict[str, Any],
) -> Prepare:
    prepare = Prepare(
        channels, pixels, _channel_values(spec, "mean") or mean, _channel_values(spec, "std") or std
    )
    facts["input_size"] = pixels[0] if pixels[0] == pixels[1] else list(pixels)
    facts["mean"], facts["std"] = list(prepare.mean), list(prepare.std)
    if pixels != shape[1:]:
        facts["resized_from"] = list(shape[1:])
    return prepare


@cache
def _hub(family: str) -> ModuleType:
    # Importing timm costs seconds and our own nets do not need it.
    if family == "timm":
        from sftc.models import hub_timm as hub
    else:
        from sftc.models import hub_torchvision as hub
    return hub


def _word(value: Any) -> str:
    return str(value).lower()


def _own_keys(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in spec.items() if k not in COMMON}


def _hub_keys(spec: Mapping[str, Any]) -> dict[str, Any]:
    keys = {k: v for k, v in spec.items() if k not in (*COMMON, "kwargs") and v is not None}
    return keys | dict(spec.get("kwargs") or {})


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _input_size(spec: Mapping[str, Any]) -> str | tuple[int, int]:
    value = spec.get("input_size", "auto")
    if value in ("auto", "min"):
        return value
    numbers = [value] if isinstance(value, int) else value
    whole = (
        isinstance(numbers, Sequence)
        and len(numbers) in (1, 2)
        and all(type(n) is int and n > 0 for n in numbers)
    )
    if not whole or isinstance(numbers, str):
        raise Refused(f"model.input_size={value} is not auto, min or a number of pixels")
    return (numbers[0], numbers[-1])


def _channel_values(spec: Mapping[str, Any], key: str) -> list[float] | None:
    value = spec.get(key, "auto")
    if value in ("auto", None):
        return None
    numbers = [value] if isinstance(value, int | float) else value
    if isinstance(numbers, str) or not numbers or not all(isinstance(n, int | float) for n in numbers):
        raise Refused(f"model.{key}={value} is not auto or a list with a number per channel")
    if key == "std" and min(numbers) <= 0:
        raise Refused(f"model.std={value} must be above zero")
    return [float(n) for n in numbers]


__all__ = ["FAMILIES", "Prepare", "Vision", "build", "check"]
