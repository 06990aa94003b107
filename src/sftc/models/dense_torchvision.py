"""torchvision's nets for segmentation, by name: fcn, deeplabv3, lraspp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchvision import models as tv
from torchvision.models import segmentation

from sftc.errors import Refused, nearest
from sftc.models import dense, keys, weights
from sftc.models.vision import GREY, prepare
from sftc.types import Form

HEADS = {"lraspp": ["low_classifier", "high_classifier"]}  # both answer, and the sum counts
HEAD = ["4"]


def check(spec: Mapping[str, Any]) -> None:
    """Raises Refused: an unknown name or key, or `pretrained=true` and no weights to be had."""
    if rest := list(keys.rest(spec)):
        raise Refused(f"model.{rest[0]} is no key of torchvision's nets for segmentation")
    name, names = spec["name"], tv.list_models(module=segmentation)
    if name not in names:
        raise Refused(f"model.name={name} is not in torchvision{nearest(name, names)} (one of: {', '.join(names)})")
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        _file(spec, download=False)


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> dense.DenseVision:
    """The net; of published weights all but the last layer.

    Raises:
        Refused: what `check` refuses; pictures that are neither grey nor RGB.
    """
    name = spec["name"]
    if form.shape[0] not in (1, 3):
        raise Refused(f"model.name={name} reads grey or RGB, the data has {form.shape[0]} channels; use model=fcn")
    file, said = _file(spec, download=True)
    facts: dict[str, Any] = {"pretrained": said}
    best: Any = tv.get_model_weights(name)
    recipe = best.DEFAULT.transforms()
    look = (list(recipe.mean), list(recipe.std)) if file is not None else (GREY, GREY)
    pixels = dense.input_size(spec, form.shape)
    first = prepare(spec, channels=3, pixels=pixels, shape=form.shape, look=look, facts=facts)
    net = tv.get_model(name, weights=None, weights_backbone=None, num_classes=out_dim)
    heads = [f"classifier.{path}" for path in HEADS.get(name.partition("_")[0], HEAD)]
    if file is not None:
        weights.load(net, file)
    model = dense.DenseVision(first, net, [f"net.{path}" for path in heads], facts)
    inner = "features." if "mobilenet" in name else ""  # where the classifier has what is the backbone here
    here = [key for key in model.state_dict() if key.startswith("net.backbone.")]
    model.aliases = {f"net.{inner}{key.removeprefix('net.backbone.')}": key for key in here}
    if file is not None:
        model.loaded = {n for n, _ in model.named_parameters() if not n.startswith(tuple(f"{h}." for h in model.heads))}
    return model


def _file(spec: Mapping[str, Any], download: bool) -> tuple[Path | None, str]:
    """The published weights, and what to say of them."""
    wish, best = keys.pretrained(spec), tv.get_model_weights(spec["name"])
    if wish == "false" or spec.get("checkpoint"):
        return None, "no"
    try:
        return weights.from_url(best.DEFAULT.url, download), "loaded"  # type: ignore[attr-defined]
    except weights.Unavailable as error:
        if wish == "true":
            way = f"give model.checkpoint=PATH, or pretrained=auto for a fresh {spec['name']}"
            raise Refused(f"model.pretrained=true: {error}; {way}") from None
        return None, f"unavailable: {error}"
