"""What the nets have in common: convolutions with their norm, the way from the last map to logits, first weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def conv(width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; the norm after it makes a bias pointless."""
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)


def normed(
    width_in: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm, and ReLU unless told otherwise.

    No ReLU here works in place: it would overwrite what somebody who listens to the norm was given.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = conv(width_in, width, kernel, stride, groups)
    layers["norm"] = nn.BatchNorm2d(width)
    if relu:
        layers["act"] = nn.ReLU()
    return nn.Sequential(layers)


def finish(stem: nn.Module, stages: Sequence[nn.Module], last: nn.Module | None, width: int, out: int) -> nn.Sequential:
    """`stem`, the stages as `layer1`, `layer2`, ..., `last`, then the mean of each of `width` maps and `out` logits."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    parts |= {f"layer{i}": stage for i, stage in enumerate(stages, 1)}
    if last is not None:
        parts["last"] = last
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(width, out)}
    return nn.Sequential(parts)


def start(net: nn.Sequential, head: str) -> nn.Sequential:
    """First weights in place: N(0, 2 / (kernel area x maps out)) for convolutions, no biases (He et al. 2015).

    Args:
        head: `torch` leaves the dense layer as torch makes it, `unbiased` zeroes its bias, `small` also draws its
            weights from N(0, 0.01^2).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    dense = net.get_submodule("head")
    assert isinstance(dense, nn.Linear)
    if head != "torch":
        nn.init.zeros_(dense.bias)
    if head == "small":
        nn.init.normal_(dense.weight, std=0.01)
    return net
