"""Nets that answer at every pixel: `fcn` and `unet`, and how their answers come back to the picture's size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.errors import Refused, nearest
from sftc.models import keys
from sftc.models.size import LEAST
from sftc.models.vision import GREY, Vision, prepare
from sftc.types import Form

FAMILIES = ("fcn", "unet", "torchvision_segmentation")


class DenseVision(Vision):
    """A Vision whose answers [N, C, h, w] are brought to the size of the pictures it was given."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, C, H, W] raw pictures -> logits [N, out_dim, H, W]."""
        out = self.net(self.prepare(inputs))
        return to_size(out["out"] if isinstance(out, dict) else out, inputs.shape[-2:])  # torchvision's are dicts


def to_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, unless it has the size."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class FCN(nn.Module):
    """Convolutions that halve the picture after each stage, and answers of all stages added up (Long et al. 2015).

    Args:
        shape: (C, H, W) of what it reads; any H and W.
        channels: width of each stage.
        depth: convolutions in each.
    """

    def __init__(
        self, shape: tuple[int, ...], out_dim: int, channels: Sequence[int] = (16, 32, 64), depth: int = 2
    ) -> None:
        super().__init__()
        widths = [shape[0], *channels]
        self.stages = nn.Sequential(
            OrderedDict((f"stage{i}", _stage(widths[i - 1], widths[i], depth, i > 1)) for i in range(1, len(widths)))
        )
        self.scores = nn.ModuleList(nn.Conv2d(width, out_dim, 1) for width in channels)

    def forward(self, x: Tensor) -> Tensor:
        said = []
        for stage, score in zip(self.stages, self.scores, strict=True):
            x = stage(x)
            said.append(score(x))
        out = said.pop()
        while said:  # coarse to fine
            finer = said.pop()
            out = to_size(out, finer.shape[-2:]) + finer
        return out


class Up(nn.Module):
    """A step of the decoder: to the size of a finer map, beside it, and two convolutions."""

    def __init__(self, width_in: int, beside: int, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*_conv(width_in + beside, width), *_conv(width, width))

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        return self.convs(torch.cat([to_size(x, finer.shape[-2:]), finer], 1))


class UNet(nn.Module):
    """A timm net for the way down, its maps beside those on the way up (Ronneberger et al. 2015).

    Args:
        encoder: timm's features_only net: pictures -> maps, each coarser than the one before.
        widths: channels of these maps.
        decoder: channels on the way up, as many as there are maps to meet.
        sections: the encoder's parameters by block, as the whole net has them.
    """

    def __init__(
        self, encoder: nn.Module, widths: Sequence[int], decoder: Sequence[int], out_dim: int, sections: list[list[str]]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.ModuleList()
        width = widths[-1]
        for beside, out in zip(widths[-2::-1], decoder, strict=True):
            self.decoder.append(Up(width, beside, out))
            width = out
        self.head = nn.Conv2d(width, out_dim, 3, padding=1)
        self._sections = sections

    def sections(self) -> list[list[str]]:
        """Names of the parameters of each block, first to last: those of the encoder are its own net's."""
        up = [[f"decoder.{i}.{n}" for n, _ in part.named_parameters()] for i, part in enumerate(self.decoder)]
        return [*self._sections, *up, [f"head.{n}" for n, _ in self.head.named_parameters()]]

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder(x)
        out = maps[-1]
        for up, finer in zip(self.decoder, maps[-2::-1], strict=True):
            out = up(out, finer)
        return self.head(out)


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: an unknown key, name or width; `pretrained=true` and no weights to be had.
    """
    if spec["family"] != "fcn":
        _library(spec["family"]).check(spec)
        return
    taken = list(signature(FCN).parameters)[2:]
    for key, value in keys.rest(spec).items():
        if key not in taken:
            raise Refused(f"model.{key} is no key of fcn{nearest(key, taken)}")
        if key == "channels":
            widths(value, key)
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        raise Refused("model.pretrained=true: nobody published weights for fcn; give model.checkpoint=PATH")


def widths(value: Any, key: str) -> list[int]:
    """Raises Refused: not a list of numbers of channels."""
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not listed or not all(type(n) is int and n > 0 for n in value):
        raise Refused(f"model.{key}={value} is not a list of widths, such as [64,32]")
    return list(value)


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> DenseVision:
    """The net for pictures (C, H, W), at the size asked for.

    Raises:
        Refused: what `check` refuses; pictures that are too small.
    """
    check(spec)
    if spec["family"] != "fcn":
        return _library(spec["family"]).build(spec, out_dim, form)
    facts: dict[str, Any] = {"pretrained": "no"}
    pixels = input_size(spec, form.shape)
    first = prepare(spec, channels=form.shape[0], pixels=pixels, shape=form.shape, look=(GREY, GREY), facts=facts)
    net = FCN((form.shape[0], *pixels), out_dim, **keys.rest(spec))
    return DenseVision(first, net, [f"net.scores.{i}" for i in range(len(net.scores))], facts)


def input_size(spec: Mapping[str, Any], shape: tuple[int, ...], least: int = LEAST) -> tuple[int, int]:
    """(height, width) that the net reads: as asked, the least, or the data's own, each side at least that.

    Raises:
        Refused: less was asked for.
    """
    wanted = keys.input_size(spec)
    if isinstance(wanted, tuple) and min(wanted) < least:
        raise Refused(f"model.input_size={min(wanted)}: {spec['name']} reads no less than {least} pixels")
    if wanted == "auto":
        return max(shape[1], least), max(shape[2], least)
    return wanted if isinstance(wanted, tuple) else (least, least)


def _library(family: str) -> Any:
    """Importing timm or torchvision costs seconds that our own net need not pay."""
    if family == "unet":
        from sftc.models import dense_timm as source
    else:
        from sftc.models import dense_torchvision as source
    return source


def _conv(width_in: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _stage(width_in: int, width: int, depth: int, pools: bool) -> nn.Sequential:
    layers = [layer for i in range(depth) for layer in _conv(width if i else width_in, width)]
    return nn.Sequential(*[nn.MaxPool2d(2, ceil_mode=True)] * pools, *layers)
