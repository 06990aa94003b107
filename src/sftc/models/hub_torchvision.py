"""Every image classifier torchvision knows by name, with its published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision import models as tv

from sftc.errors import Refused, nearest
from sftc.models import surgery, weights
from sftc.models.size import dry
from sftc.models.weights import Card, Unavailable

OURS = {
    "num_classes": "the task",
    "weights": "model.pretrained",
    "progress": "nothing",
    "image_size": "model.input_size",
}
HALF = (
    "inception_v3",
    "googlenet",
)  # trained on [-1, 1]; torchvision hides that in `transform_input`, we in mean and std


def check(name: str) -> None:
    """Refuse a name torchvision does not know, naming the nearest.

    Raises:
        Refused: no such classifier.
    """
    names = tv.list_models(module=torchvision.models)
    if name not in names:
        raise Refused(
            f"model.name={name} is not in torchvision{nearest(name, names)} (one of: {', '.join(names)})"
        )


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


def make(
    name: str, out_dim: int, size: int | None, keys: dict[str, Any], file: Path | None = None
) -> nn.Module:
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
        try:
            weights.load(net, file)
        except Refused as error:
            raise Unavailable(str(error)) from None
    return net


def heads(name: str, size: int, keys: dict[str, Any]) -> list[str]:
    """Path of the module that gives the logits: the last one that a dry run passes."""
    with dry():
        return [surgery.find_head(make(name, 2, size, keys), size)]


def find(name: str) -> None:
    """Whether the weights are here or could be fetched.

    Raises:
        Unavailable: neither.
    """
    weights.from_url(_url(name), download=False)


def fetch(name: str) -> Path:
    """The published weights as a local file.

    Raises:
        Unavailable: there are none, or they are not in the cache and cannot be downloaded.
    """
    file = weights.from_url(_url(name), download=True)
    assert file is not None
    return file


def _best(name: str) -> Any:
    published = list(tv.get_model_weights(name))
    return tv.get_model_weights(name).DEFAULT if published else None  # type: ignore[attr-defined]


def _url(name: str) -> str:
    best = _best(name)
    if best is None:
        raise Unavailable(f"nobody published weights for {name}")
    return best.url


def _defaults(name: str, size: int | None) -> dict[str, Any]:
    if name in HALF:  # the auxiliary heads are a training trick of 2014 that would double the outputs
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": (size, size)}
    return {}
