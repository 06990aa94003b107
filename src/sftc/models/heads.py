"""Another head for a model: dense layers in the place of its last one, or convolutions on its last map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused
from sftc.models import keys
from sftc.models.surgery import evaluating
from sftc.models.vision import Vision
from sftc.types import Form

OTHER = "use model.head=mlp"
Unpool = Callable[
    [Mapping[str, Any], nn.Module], str
]  # makes a net give its last map, perhaps flattened; -> path of what gives it


def grow(model: Any, spec: Mapping[str, Any], out_dim: int, form: Form, unpool: Unpool | None) -> None:
    """Give `model` the fresh head that `spec` asks for, in place; its first layer fits what a dry run gives it.

    Args:
        unpool: how this family's nets are made to give their last map, for head=conv; None: they have none.

    Raises:
        Refused: widths that are none, or head=conv for a net whose end is no map.
    """
    kind = keys.head(spec)
    if kind == "mlp":
        for path in model.heads:
            parent, _, name = path.rpartition(".")
            head = _dense(model.get_submodule(path), spec["head_hidden"], out_dim)
            setattr(model.get_submodule(parent), name, head)
        model.facts["head"] = f"mlp {spec['head_hidden']}"
    elif kind == "conv":
        try:
            if unpool is None:
                raise Refused("this one has none")
            path = unpool(spec, model.net)
        except Refused as e:
            raise Refused(f"model.head=conv reads the last map of a net: {e}; {OTHER}") from None
        maps, flat = _last_map(model, path, form)
        model.head = _convolutions(maps, flat, spec["head_channels"], out_dim)
        if spec.get("log_softmax"):
            model.head.add_module("log_softmax", nn.LogSoftmax(dim=1))
        model.heads = ["head"]
        model.facts["head"] = f"conv {spec['head_channels']} on maps of shape {list(maps)}"
    heads = tuple(f"{path}." for path in model.heads)
    model.loaded = {name for name, _ in model.named_parameters() if name in model.loaded and not name.startswith(heads)}


def cut(net: nn.Module, first: str) -> str:
    """Take a sequence's children from `first` on away, in place; -> the path of what is last then.

    Raises:
        Refused: nothing before it gives maps.
    """
    names = [name for name, _ in net.named_children()]
    kept, gone = names[: names.index(first)], names[names.index(first) :]
    if not kept:
        raise Refused("this one has none")
    for name in gone:
        delattr(net, name)
    return kept[-1]


class Dense(nn.Module):
    """Layers one after another, but no nn.Sequential: into those timm's nets look, and find a head they do not know."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> logits [N, out_dim]; in the place of a convolution, maps -> maps."""
        for layer in self.children():
            x = layer(x)
        return x


def _dense(old: nn.Module, hidden: Sequence[int], out_dim: int) -> Dense:
    """Dense layers with ReLU; in the place of a convolution, the same at each position."""
    if isinstance(old, nn.Conv2d):
        layer: Callable[[int, int], nn.Module] = lambda a, b: nn.Conv2d(a, b, 1)  # noqa: E731
        width = old.in_channels
    elif isinstance(old, nn.Linear):
        layer, width = nn.Linear, old.in_features
    else:
        raise Refused(f"model.head=mlp: the head is a {type(old).__name__}, neither dense nor a convolution")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, wide in enumerate(hidden, 1):
        layers[f"fc{i}"] = nn.Sequential(layer(width, wide), nn.ReLU())
        width = wide
    layers["head"] = layer(width, out_dim)
    return Dense(layers)


def _convolutions(maps: tuple[int, ...], flat: bool, channels: Sequence[int], out_dim: int) -> nn.Sequential:
    """Convolutions of 3 x 3 with ReLU on `maps` (C, H, W), the mean of each map, and a dense layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if flat:
        layers["unflatten"] = nn.Unflatten(1, maps)
    width = maps[0]
    for i, wide in enumerate(channels, 1):
        layers[f"conv{i}"] = nn.Sequential(nn.Conv2d(width, wide, 3, padding=1), nn.ReLU())
        width = wide
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(width, out_dim)}
    return nn.Sequential(layers)


def _last_map(model: Vision, path: str, form: Form) -> tuple[tuple[int, ...], bool]:
    """(C, H, W) of what the module at `path` gives, and whether the net flattens it on its way out."""
    seen: list[Any] = []
    hook = model.net.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad(), evaluating(model):
        device = next(model.net.parameters()).device
        out: Any = model.net(model.prepare.to(device)(form.blank().to(device)))
    hook.remove()
    last = seen[-1] if seen else None
    if not isinstance(last, Tensor) or last.ndim != 4:
        raise Refused(f"model.head=conv reads the last map of a net, and {model.facts['name']} has none; {OTHER}")
    if not isinstance(out, Tensor) or out.flatten(1).shape != last.flatten(1).shape:
        raise Refused(
            f"model.head=conv: {model.facts['name']} does more after its last map than to average it; {OTHER}"
        )
    maps = tuple(last.shape[1:])
    return maps, out.ndim == 2
