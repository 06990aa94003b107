"""Every image classifier timm knows by name, with its published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from sftc.errors import Refused, nearest
from sftc.models import surgery, weights
from sftc.models.size import dry
from sftc.models.weights import Card, Unavailable

OURS = {
    "num_classes": "the task",
    "in_chans": "the data (grey pictures are repeated to RGB)",
    "img_size": "model.input_size",
    "pretrained": "model.pretrained",
    "checkpoint_path": "model.checkpoint",
}
NEVER = ("features_only", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable")


def check(name: str) -> None:
    """Refuse a name timm does not know, naming the nearest.

    Raises:
        Refused: unknown architecture or tag, or a name that points at code outside timm.
    """
    if ":" in name or "/" in name:
        raise Refused(
            f"model.name={name}: hub and folder names are not opened; give a timm name and model.checkpoint=PATH"
        )
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise Refused(
            f"model.name={name} is not in timm{nearest(arch, timm.list_models()) or ' (see timm.list_models())'}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(arch)]
    if tag and tag not in tags:
        raise Refused(
            f"model.name={name}: {arch} has no weights '{tag}'{nearest(tag, tags)} (there are: {', '.join(tags)})"
        )


def card(name: str) -> Card:
    """What timm says about `name`."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Card(224, [0.5] * 3, [0.5] * 3, False)
    return Card(config.input_size[-1], list(config.mean), list(config.std), bool(config.fixed_input_size))


def make(
    name: str, out_dim: int, size: int | None, keys: dict[str, Any], file: Path | None = None
) -> nn.Module:
    """The net with `out_dim` logits, for pictures of `size` pixels, with the weights in `file` if given.

    Raises:
        Refused: a keyword the architecture does not take.
        Unavailable: `file` cannot be read.
    """
    for key in keys:
        if key in OURS or key in NEVER:
            raise Refused(
                f"model.kwargs.{key} is not yours to set: {OURS.get(key, 'it would give another kind of model')}"
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


def heads(name: str, size: int, keys: dict[str, Any]) -> list[str]:
    """Paths of the modules that give the logits: as timm says, else the last one that a dry run passes."""
    with dry():
        net = make(name, 2, size, keys)
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        named = getattr(config, "classifier", None) or ()
        paths = [named] if isinstance(named, str) else list(named)
        there = {path for path, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        return paths if paths and there.issuperset(paths) else [surgery.find_head(net, size)]


def find(name: str) -> None:
    """Whether the weights are here or could be fetched.

    Raises:
        Unavailable: neither.
    """
    _locate(name, download=False)


def fetch(name: str) -> Path:
    """The published weights as a local file.

    Raises:
        Unavailable: there are none, or they are not in the cache and cannot be downloaded.
    """
    file = _locate(name, download=True)
    assert file is not None
    return file


def _locate(name: str, download: bool) -> Path | None:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise Unavailable(f"nobody published weights for {name}")
    if config.hf_hub_id:
        return weights.from_hub(config.hf_hub_id, config.hf_hub_filename, download)
    return weights.from_url(str(config.url), download)
