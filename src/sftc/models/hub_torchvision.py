"""Every image classifier torchvision knows by name, with its published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision import models as tv

from sftc.errors import Refused, nearest
from sftc.models import weights
from sftc.models.weights import Card, Unavailable

OURS = {
    "num_classes": "the task does",
    "image_size": "model.input_size does",
    "weights": "model.pretrained does",
    "progress": "there is none",
    "transform_input": "model.mean and model.std do",
    "aux_logits": "one head is trained",
}
HALF = ("inception_v3", "googlenet")  # trained on [-1, 1], which torchvision hides in `transform_input`


def check(name: str) -> None:
    """Refuse a name torchvision does not know, naming the nearest.

    Raises:
        Refused: no such classifier.
    """
    names = tv.list_models(module=torchvision.models)
    if name not in names:
        raise Refused(f"model.name={name} is not in torchvision{nearest(name, names)} (one of: {', '.join(names)})")


def card(name: str) -> Card:
    """What the published weights of `name` were trained on."""
    best = _best(name)
    # Only these two families are built for one size; the others run on what they get.
    fixed = name.startswith(("vit_", "maxvit"))
    if best is None:
        return Card(224, [0.5] * 3, [0.5] * 3, fixed)
    recipe = best.transforms()
    if name in HALF:
        return Card(recipe.crop_size[0], [0.5] * 3, [0.5] * 3, fixed)
    return Card(recipe.crop_size[0], list(recipe.mean), list(recipe.std), fixed)


def make(name: str, out_dim: int, size: int | None, keys: dict[str, Any], file: Path | None = None) -> nn.Module:
    """The net with `out_dim` logits, for pictures of `size` pixels, with the weights in `file` if given.

    Raises:
        Refused: a keyword the architecture does not take.
        Unavailable: `file` cannot be read.
    """
    for key in keys:
        if key in OURS:
            raise Refused(f"model.kwargs.{key} is not yours to set: {OURS[key]}")
    keys = {**_defaults(name, size), **keys}
    try:
        net = tv.get_model(name, weights=None, num_classes=out_dim, **keys)
    except TypeError as error:
        raise Refused(f"model.name={name} does not take these keys: {weights.line(error)}") from error
    if file is not None:
        _fill(net, file)
    return net


def heads(name: str, net: nn.Module) -> list[str]:
    """torchvision does not say which of its modules give the logits."""
    return []


def unpool(net: nn.Module) -> str:
    """Make the net give its last map: what pools, and all after it, gives way. Raises Refused: it pools in its code."""
    names = [name for name, _ in net.named_children()]
    if "avgpool" not in names:
        raise Refused("this one has none, or averages it in its own code")
    for name in names[names.index("avgpool") :]:
        setattr(net, name, nn.Identity())
    return "avgpool"


def locate(name: str, download: bool) -> Path | None:
    """The published weights as a local file (None: they could be downloaded).

    Raises:
        Unavailable: there are none, or they are not in the cache and cannot be downloaded.
    """
    best = _best(name)
    if best is None:
        raise Unavailable(f"nobody published weights for {name}")
    return weights.from_url(best.url, download)


def _fill(net: nn.Module, file: Path) -> None:
    try:
        report = weights.load(net, file)
    except Refused as error:
        raise Unavailable(str(error)) from None
    other = {key.rpartition(".")[0] for key in report["shape_mismatch"]}
    if len(other) > 1:  # not the head alone: position embeddings
        raise Unavailable(f"{file.name} fits only the picture size it was trained on, for {', '.join(sorted(other))}")


def _best(name: str) -> Any:
    published = list(tv.get_model_weights(name))
    return tv.get_model_weights(name).DEFAULT if published else None  # type: ignore[attr-defined]


def _defaults(name: str, size: int | None) -> dict[str, Any]:
    if name in HALF:  # the auxiliary heads are a training trick of 2014 that would double the outputs
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size)}
    return {}
