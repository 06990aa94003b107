"""Our own small nets: made for their shape, so they read any size and any number of channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from sftc.errors import Refused, nearest
from sftc.models import heads, keys
from sftc.models.audio import audio_bilstm, audio_cnn
from sftc.models.entry import Entry
from sftc.models.size import LEAST
from sftc.models.vision import GREY, Vision, prepare
from sftc.types import Form


def mlp(
    shape: tuple[int, ...],
    out_dim: int,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
    batch_norm: bool = False,
    log_softmax: bool = False,
) -> nn.Sequential:
    """Dense layers with ReLU over the flattened input; no `hidden` gives a linear model.

    With `log_softmax` it ends in log-probabilities, for loss=nll.
    """
    layers: Layers = OrderedDict(flatten=nn.Flatten())
    widths = [prod(shape), *hidden]
    for i, (width_in, width) in enumerate(pairwise(widths), 1):
        layers[f"fc{i}"] = _dense(width_in, width, dropout, batch_norm)
    return _finish(layers, widths[-1], out_dim, log_softmax)


def linear(shape: tuple[int, ...], out_dim: int, log_softmax: bool = False) -> nn.Sequential:
    """One dense layer: softmax or linear regression."""
    return mlp(shape, out_dim, hidden=(), log_softmax=log_softmax)


def simple_cnn(
    shape: tuple[int, ...],
    out_dim: int,
    channels: Sequence[int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
    dropout: float = 0.0,
    batch_norm: bool = False,
    log_softmax: bool = False,
) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998), at 32 x 32 as in PyTorch's first tutorial.

    Smaller pictures are padded where a map would be smaller than LeNet's own (28 x 28 ends in its 16 x 5 x 5
    features too); larger ones are pooled to 5 x 5, so the dense layers stay small.
    """
    layers: Layers = OrderedDict()
    width_in, height, width = shape
    for i, out in enumerate(channels, 1):
        padding = 2 if min(height, width) < (32 if i == 1 else 14) else 0
        layers[f"conv{i}"] = _conv(width_in, out, padding, batch_norm)
        width_in, height, width = out, height + 2 * padding - 4, width + 2 * padding - 4
        if min(height, width) >= 2:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
    if max(height, width) > 5:
        height, width = min(height, 5), min(width, 5)
        layers["pool"] = nn.AdaptiveMaxPool2d((height, width))
    layers["flatten"] = nn.Flatten()
    widths = [width_in * height * width, *hidden]
    for i, (w_in, w_out) in enumerate(pairwise(widths), 1):
        layers[f"fc{i}"] = _dense(w_in, w_out, dropout, batch_norm)
    return _finish(layers, widths[-1], out_dim, log_softmax)


Layers = OrderedDict[str, nn.Module]
NETS: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "simple_cnn": simple_cnn, "linear": linear}
NETS |= {"audio_cnn": audio_cnn, "audio_bilstm": audio_bilstm}


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: an unknown key, a width that is not a whole number above zero, a dropout outside [0, 1).
    """
    family, taken = spec["family"], list(signature(NETS[spec["family"]]).parameters)[2:]
    for key, value in keys.rest(spec).items():
        if key not in taken:
            raise Refused(f"model.{key} is no key of {family}{nearest(key, taken)}")
        if key in ("hidden", "channels") and not keys.widths(value):
            raise Refused(f"model.{key}={value} is not a list of widths, such as [128,64]")
        if key == "channels" and not value:
            raise Refused("model.channels=[] leaves no convolution; use model=mlp")
        if key in ("units", "layers") and not (type(value) is int and value > 0):
            raise Refused(f"model.{key}={value} is not a whole number above zero")
        if key == "dropout" and not 0 <= value < 1:
            raise Refused(f"model.dropout={value} must lie in [0, 1)")
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        raise Refused(f"model.pretrained=true: nobody published weights for {family}; give model.checkpoint=PATH")


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The net for pictures (C, H, W) at the size asked for, or rows of numbers (D,).

    Raises:
        Refused: what `check` refuses.
    """
    check(spec)
    family, rest, facts, shape = spec["family"], keys.rest(spec), {"pretrained": "no"}, form.shape
    if form.kind == "table":
        return Vision(nn.Identity(), _of_table(family, rest, out_dim, form), ["net.head"], facts)
    if spec.get("head") == "conv" and "hidden" in rest:
        rest["hidden"] = []  # they would go again
    channels, height, width = shape
    wanted = keys.input_size(spec)
    if wanted == "auto":
        wanted = (max(height, LEAST), max(width, LEAST))
    pixels = wanted if isinstance(wanted, tuple) else (LEAST, LEAST)
    first = prepare(spec, channels=channels, pixels=pixels, shape=shape, look=(GREY, GREY), facts=facts)
    return Vision(first, NETS[family]((channels, *pixels), out_dim, **rest), ["net.head"], facts)


def unpool(_spec: Mapping[str, Any], net: nn.Module) -> str:
    """Make a net give its last map; -> the path of what gives it. Raises Refused: it has none."""
    return heads.cut(net, "flatten")


def _of_table(family: str, rest: Mapping[str, Any], out_dim: int, form: Form) -> nn.Module:
    """The net on rows as they are; where cells may be missing or are codes, on what those become first."""
    entry = Entry(form, onehot=family == "linear")
    if entry.cells.plain:
        return NETS[family](form.shape, out_dim, **rest)
    net = NETS[family]((entry.width,), out_dim, **rest)
    return nn.Sequential(OrderedDict(entry=entry, **dict(net.named_children())))


def _dense(width_in: int, width: int, dropout: float, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width_in, width)]
    layers += [nn.BatchNorm1d(width)] * batch_norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers)


def _conv(width_in: int, width: int, padding: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width_in, width, 5, padding=padding)]
    return nn.Sequential(*layers, *[nn.BatchNorm2d(width)] * batch_norm, nn.ReLU())


def _finish(layers: Layers, width: int, out_dim: int, log_softmax: bool) -> nn.Sequential:
    layers["head"] = nn.Linear(width, out_dim)
    if log_softmax:
        layers["log_softmax"] = nn.LogSoftmax(dim=1)
    return nn.Sequential(layers)
