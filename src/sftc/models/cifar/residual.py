"""Residual nets of three stages, each at half the size of the one before and twice as wide."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sftc.models.cifar.layers import conv, finish, normed, start


def resnet(depth: int, out_dim: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> nn.Sequential:
    """He et al. 2016, section 4.2, with convolutions where a shortcut changes size or width.

    Args:
        depth: 6n + 2, for n blocks of two convolutions a stage.
        widths: maps of the stem and of each stage; 32, 64, 128, 256 is the field's "x4".
    """
    first, *stages = widths
    layers, width_in = [], first
    for stage, width in enumerate(stages):
        blocks = [Residual(width_in, width, stride=2 if stage else 1)]
        blocks += [Residual(width, width) for _ in range((depth - 2) // 6 - 1)]
        layers.append(nn.Sequential(*blocks))
        width_in = width
    return start(finish(normed(3, first), layers, None, width_in, out_dim), head="torch")


def wrn(depth: int, widen: int, out_dim: int) -> nn.Sequential:
    """The wide residual net of Zagoruyko & Komodakis 2016, without dropout.

    Its stages give sums that no norm and no ReLU has seen: both stand at the start of the next block, after the
    last stage as `last`.

    Args:
        depth: 6n + 4, for n blocks of two convolutions a stage; the convolutions of shortcuts are counted too.
        widen: what 16, 32 and 64 maps are multiplied by; the stem stays at 16.
    """
    layers, width_in = [], 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        blocks = [PreActivated(width_in, width, stride=2 if stage else 1)]
        blocks += [PreActivated(width, width) for _ in range((depth - 4) // 6 - 1)]
        layers.append(nn.Sequential(*blocks))
        width_in = width
    last = nn.Sequential(nn.BatchNorm2d(width_in), nn.ReLU())
    return start(finish(conv(3, 16), layers, last, width_in, out_dim), head="unbiased")


class Residual(nn.Module):
    """ReLU of the sum of the input and two convolutions of it: [N, width_in, H, W] -> [N, width, H/s, W/s]."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = normed(width_in, width, stride=stride)
        self.second = normed(width, width, relu=False)
        same = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same else normed(width_in, width, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class PreActivated(nn.Module):
    """Norm and ReLU before each convolution, and none after the sum (He et al. 2016b); shapes as in `Residual`.

    A shortcut that changes the width starts from the first ReLU, one that does not from the input itself.
    """

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = conv(width_in, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width)
        self.shortcut = None if width_in == width else conv(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(ready))))
        return out + (x if self.shortcut is None else self.shortcut(ready))
