"""Architectures of timm and torchvision: which size, which weights, which head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from sftc.errors import Refused
from sftc.models import keys, size, surgery, weights
from sftc.models.vision import GREY, Vision, prepare
from sftc.types import Form

HUBS = ("timm", "torchvision")


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: unknown name or keyword, or `pretrained=true` and no weights to be had.
    """
    source, name = library(spec["family"]), spec["name"]
    source.check(name)
    try:
        size.shapes_only(source, name, source.card(name).size, _keywords(spec))
    except (ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise Refused(f"model.name={name} cannot be built with these keys: {weights.line(error)}") from error
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        try:
            source.locate(name, download=False)
        except weights.Unavailable as error:
            raise _no_weights(name, error) from None


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The net with its head, at the size the published weights want if they were loaded, else at the data's.

    Raises:
        Refused: pictures it cannot read, or `pretrained=true` and no weights to be had.
    """
    source, name, keywords = library(spec["family"]), spec["name"], _keywords(spec)
    source.check(name)
    shape = form.shape
    if shape[0] not in (1, 3):
        raise Refused(f"model.name={name} reads grey or RGB, the data has {shape[0]} channels; use model=simple_cnn")
    card = source.card(name)
    file, said = _published(spec, source)
    # With pretrained=true a checkpoint stands in for the published weights: same size, same colours.
    stands_in = bool(spec.get("checkpoint")) and keys.pretrained(spec) == "true"
    trained = file is not None or stands_in
    wanted = keys.input_size(spec)
    if trained and wanted == "auto":
        wanted = (card.size, card.size)
    pixels = size.fit(source, name, keywords, wanted, (shape[1], shape[2]))
    facts: dict[str, Any] = {"pretrained": said}
    look = (card.mean, card.std) if trained else (GREY, GREY)
    first = prepare(spec, channels=3, pixels=pixels, shape=shape, look=look, facts=facts)
    try:
        net = source.make(name, out_dim, max(pixels), keywords, file)
    except weights.Unavailable as error:  # a damaged file in the cache
        if keys.pretrained(spec) == "true":
            raise _no_weights(name, error) from None
        model = build({**spec, "pretrained": "false"}, out_dim, form)
        model.facts["pretrained"] = f"unavailable: {error}"
        return model
    dry = size.shapes_only(source, name, max(pixels), keywords)
    heads = source.heads(name, dry) or [surgery.find_head(dry, max(pixels))]
    model = Vision(first, net, [f"net.{path}" for path in heads], facts)
    if file is not None:
        fresh = tuple(f"{path}." for path in model.heads)
        model.loaded = {name for name, _ in model.named_parameters() if not name.startswith(fresh)}
    return model


def unpool(spec: Mapping[str, Any], net: nn.Module) -> str:
    """Make a net give its last map; -> the path of what gives it. Raises Refused: it has none, or hides it."""
    return library(spec["family"]).unpool(net)


@cache
def library(family: str) -> ModuleType:
    """The module that speaks for a family. Importing timm costs seconds that our own nets need not pay."""
    if family == "timm":
        from sftc.models import hub_timm as source
    else:
        from sftc.models import hub_torchvision as source
    return source


def _published(spec: Mapping[str, Any], source: ModuleType) -> tuple[Any, str]:
    """The file of published weights (None: go on untrained), and what to say about it."""
    wish = keys.pretrained(spec)
    if wish == "false" or spec.get("checkpoint"):
        return None, "no"
    try:
        return source.locate(spec["name"], download=True), "loaded"
    except weights.Unavailable as error:
        if wish == "true":
            raise _no_weights(spec["name"], error) from None
        return None, f"unavailable: {error}"


def _no_weights(name: str, error: Exception) -> Refused:
    return Refused(f"model.pretrained=true: {error}; give model.checkpoint=PATH, or pretrained=auto for a fresh {name}")


def _keywords(spec: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in keys.rest(spec).items() if k != "kwargs" and v is not None}
    return own | dict(spec.get("kwargs") or {})
