"""Our own small nets: made for their shape, so they read any size and any number of channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from inspect import signature
from math import prod
from typing import Any

from torch import nn

from sftc.errors import Refused, nearest


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
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    widths = [prod(shape), *hidden]
    for i, (width_in, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
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
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998, as in PyTorch's first tutorial): at 32 x 32 exactly that.

    Smaller pictures are padded where a map would be smaller than LeNet's own (28 x 28 gets LeNet's 16 x 5 x 5 features
    too); larger ones are pooled to 5 x 5, so the dense layers stay small.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
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
    for i, (w_in, w_out) in enumerate(zip(widths, widths[1:], strict=False), 1):
        layers[f"fc{i}"] = _dense(w_in, w_out, dropout, batch_norm)
    return _finish(layers, widths[-1], out_dim, log_softmax)


NETS = {"mlp": mlp, "simple_cnn": simple_cnn, "linear": linear}


def reads_tables(family: str) -> bool:
    return family != "simple_cnn"


def make(family: str, shape: tuple[int, ...], out_dim: int, **keys: Any) -> nn.Sequential:
    """The net `family` for inputs of `shape`, with YAML's `keys`.

    Raises:
        Refused: a width that is not a whole number above zero, or a dropout outside [0, 1).
    """
    check(family, **keys)
    return NETS[family](shape, out_dim, **keys)


def check(family: str, **keys: Any) -> None:
    """What `make` would refuse."""
    names = list(signature(NETS[family]).parameters)[2:]
    for key, value in keys.items():
        if key not in names:
            raise Refused(f"model.{key} is no key of {family}{nearest(key, names)}")
        if key in ("hidden", "channels"):
            whole = isinstance(value, Sequence) and all(type(n) is int and n > 0 for n in value)
            if not whole or isinstance(value, str):
                raise Refused(f"model.{key}={value} is not a list of widths, such as [128,64]")
        if key == "dropout" and not 0 <= value < 1:
            raise Refused(f"model.dropout={value} must lie in [0, 1)")
    if family == "simple_cnn" and not 1 <= len(keys.get("channels", (1,))) <= 8:
        raise Refused("model.channels needs 1 to 8 widths; model=mlp has no convolutions")


def _dense(width_in: int, width: int, dropout: float, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width_in, width)]
    layers += [nn.BatchNorm1d(width)] * batch_norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers)


def _conv(width_in: int, width: int, padding: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width_in, width, 5, padding=padding)]
    return nn.Sequential(*layers, *[nn.BatchNorm2d(width)] * batch_norm, nn.ReLU())


def _finish(
    layers: OrderedDict[str, nn.Module], width: int, out_dim: int, log_softmax: bool
) -> nn.Sequential:
    layers["head"] = nn.Linear(width, out_dim)
    if log_softmax:
        layers["log_softmax"] = nn.LogSoftmax(dim=1)
    return nn.Sequential(layers)
