"""`unet`: any timm net that gives maps of several sizes, with a decoder of our own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import nn

from sftc.errors import Refused, nearest
from sftc.models import dense, hub_timm, keys, weights
from sftc.models.vision import GREY, prepare
from sftc.types import Form

OWN = ("backbone", "decoder")
PROBE = 128  # pixels of a side of the dry run


def check(spec: Mapping[str, Any]) -> None:
    """Raises Refused: an unknown key or backbone, too few widths, or `pretrained=true` and no weights to be had."""
    for key in keys.rest(spec):
        if key not in OWN:
            raise Refused(f"model.{key} is no key of unet{nearest(key, OWN)}")
    name = spec["backbone"]
    hub_timm.check(name)
    maps, decoder = len(_shape(name)[0]), dense.widths(spec["decoder"], "decoder")
    if len(decoder) < maps - 1:
        raise Refused(f"model.decoder={decoder}: {name} gives {maps} maps, so there must be {maps - 1} widths or more")
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        try:
            hub_timm.locate(name, download=False)
        except weights.Unavailable as error:
            raise _no_weights(name, error) from None


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> dense.DenseVision:
    """The net, its encoder with published weights if there are some.

    Raises:
        Refused: what `check` refuses; pictures that are neither grey nor RGB.
    """
    name, decoder = spec["backbone"], dense.widths(spec["decoder"], "decoder")
    if form.shape[0] not in (1, 3):
        raise Refused(f"model={spec['name']} reads grey or RGB, the data has {form.shape[0]} channels; use model=fcn")
    encoder, said = _encoder(spec, name)
    card = hub_timm.card(name)
    facts: dict[str, Any] = {"backbone": name, "pretrained": said}
    look = (card.mean, card.std) if said == "loaded" else (GREY, GREY)
    channels, theirs, groups, coarsest = _shape(name)
    pixels = dense.input_size(spec, form.shape, coarsest)
    first = prepare(spec, channels=3, pixels=pixels, shape=form.shape, look=look, facts=facts)
    sections = [[f"encoder.{n}" for n in group] for group in groups]
    net = dense.UNet(encoder, channels, decoder[: len(channels) - 1], out_dim, sections)
    model = dense.DenseVision(first, net, ["net.head"], facts)
    model.aliases = {f"net.{whole}": f"net.encoder.{here}" for here, whole in theirs.items()}
    if said == "loaded":
        model.loaded = {f"net.encoder.{n}" for n, _ in encoder.named_parameters()}
    return model


def _encoder(spec: Mapping[str, Any], name: str) -> tuple[nn.Module, str]:
    """The way down, and what to say about its weights."""
    wish, file, said = keys.pretrained(spec), None, "no"
    if wish != "false" and not spec.get("checkpoint"):
        try:
            file, said = hub_timm.locate(name, download=True), "loaded"
        except weights.Unavailable as error:
            if wish == "true":
                raise _no_weights(name, error) from None
            said = f"unavailable: {error}"
    loading: dict[str, Any] = {}
    if file is not None:
        overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
        loading = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    with weights.quiet():
        return timm.create_model(name, features_only=True, **loading), said


def _no_weights(name: str, error: Exception) -> Refused:
    return Refused(f"model.pretrained=true: {error}; give model.checkpoint=PATH, or pretrained=auto for a fresh {name}")


@lru_cache
def _shape(name: str) -> tuple[list[int], dict[str, str], list[list[str]], int]:
    """Channels of its maps; its tensors by their names in the whole net; its parameters by the whole net's blocks;
    pixels of a side that its coarsest map makes one of.

    Raises:
        Refused: it gives no maps, or not each coarser than the one before.
    """
    from timm.models import group_parameters

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), weights.quiet():
            encoder: Any = timm.create_model(name, features_only=True).eval()
            whole: Any = timm.create_model(name, num_classes=2)
            maps = encoder(torch.zeros(2, 3, PROBE, PROBE))
        sides = [m.shape[-1] for m in maps]
        channels = [int(n) for n in encoder.feature_info.channels()]
        right = [m.shape[1] for m in maps] == channels and all(a > b for a, b in pairwise(sides))
    except Exception as error:  # each architecture complains in its own words
        raise Refused(f"model.backbone={name} gives no maps ({weights.line(error)}); use resnet18") from None
    if not right:
        raise Refused(f"model.backbone={name} gives maps of one size, or channels last; use one with stages: resnet18")
    known = whole.state_dict()
    theirs = {here: there for here in encoder.state_dict() if (there := _there(here, known)) is not None}
    here = {there: name for name, there in theirs.items()}
    params = {n for n, _ in encoder.named_parameters()}
    groups = group_parameters(whole, whole.group_matcher(coarse=False))
    sections = [[here[n] for n in names if here.get(n) in params] for _, names in sorted(groups.items())]
    left = [n for n in params if n not in theirs]
    return channels, theirs, [s for s in [*sections, left] if s], int(encoder.feature_info.reduction()[-1])


def _there(name: str, known: Mapping[str, Any]) -> str | None:
    """The name in the whole net, of which features_only made `stages_0` out of `stages.0`."""
    first, dot, rest = name.partition(".")
    return next((n for n in (name, first.replace("_", ".", 1) + dot + rest) if n in known), None)
