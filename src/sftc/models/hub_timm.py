"""Every image classifier timm knows by name, with its published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from sftc.errors import Refused, nearest
from sftc.models import weights
from sftc.models.weights import Card, Unavailable

OURS = {
    "num_classes": "the task does",
    "in_chans": "grey pictures are repeated to RGB",
    "img_size": "model.input_size does",
    "pretrained": "model.pretrained does",
    "checkpoint_path": "model.checkpoint does",
}
NEVER = ("features_only", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable")


def check(name: str) -> None:
    """Refuse a name timm does not know, naming the nearest.

    Raises:
        Refused: unknown architecture or tag, or a name that points at code outside timm.
    """
    if ":" in name or "/" in name:
        raise Refused(f"model.name={name} is a place, not a name; give a timm name and model.checkpoint=PATH")
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise Refused(f"model.name={name} is not in timm{nearest(arch, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(arch)]
    if tag and tag not in tags:
        listed = ", ".join(tags) or "none"
        raise Refused(f"model.name={name}: {arch} has no weights '{tag}'{nearest(tag, tags)} (there are: {listed})")


def card(name: str) -> Card:
    """What timm says about `name`."""
    config = _config(name)
    if config is None:
        return Card(224, [0.5] * 3, [0.5] * 3, False)
    return Card(config.input_size[-1], list(config.mean), list(config.std), bool(config.fixed_input_size))


def make(name: str, out_dim: int, size: int | None, keys: dict[str, Any], file: Path | None = None) -> nn.Module:
    """The net with `out_dim` logits, for pictures of `size` pixels, with the weights in `file` if given.

    Raises:
        Refused: a keyword the architecture does not take.
        Unavailable: `file` cannot be read.
    """
    for key in keys:
        if key in OURS or key in NEVER:
            raise Refused(
                f"model.kwargs.{key} is not yours to set: {OURS.get(key, 'the model must stay a classifier')}"
            )
    sized = {"img_size": size} if card(name).fixed else {}
    loading: dict[str, Any] = {}
    if file is not None:
        # A path instead of the hub's name: timm would try the network again, six times, and wait in between.
        overlay = {"file": str(file), "custom_load": file.suffix == ".npz"}
        loading = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    with weights.quiet():
        try:
            return timm.create_model(name, num_classes=out_dim, **sized, **keys, **loading)
        except TypeError as error:
            raise Refused(f"model.name={name} does not take these keys: {weights.line(error)}") from error
        except Exception as error:
            if file is None:
                raise
            raise Unavailable(f"{file} cannot be loaded ({weights.line(error)})") from error


def heads(name: str, net: nn.Module) -> list[str]:
    """Paths of the modules that give the logits, as timm says; none where it does not know."""
    named = getattr(_config(name), "classifier", None) or ()
    paths = [named] if isinstance(named, str) else [str(path) for path in named]
    layers = {path for path, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return paths if layers.issuperset(paths) else []


def unpool(net: nn.Module) -> str:
    """Make the net give its last map, as timm does it. Raises Refused: it cannot."""
    try:
        net.reset_classifier(0, "")  # type: ignore[operator]
    except Exception as error:  # each in its own words
        raise Refused(f"this one cannot give it ({weights.line(error)})") from error
    if getattr(net, "output_fmt", "NCHW") != "NCHW":
        raise Refused(f"this one's have their channels last ({net.output_fmt})")
    return ""


def locate(name: str, download: bool) -> Path | None:
    """The published weights as a local file (None: they could be downloaded).

    Raises:
        Unavailable: there are none, or they are not in the cache and cannot be downloaded.
    """
    config = _config(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise Unavailable(f"nobody published weights for {name}")
    if config.hf_hub_id:
        return weights.from_hub(config.hf_hub_id, config.hf_hub_filename, download)
    return weights.from_url(str(config.url), download)


def _config(name: str) -> Any:
    return timm.get_pretrained_cfg(name, allow_unregistered=True)
