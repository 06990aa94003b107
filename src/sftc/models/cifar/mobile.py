"""Students of another make than their teachers: nets for telephones, with less halving because pictures are small."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftc.models.cifar.layers import finish, normed, start


def mobilenetv2(out_dim: int) -> nn.Sequential:
    """Sandler et al. 2018 at half the width and an expansion of 6, as "MobileNetV2" of the field's tables.

    Three things are other than in the paper: ReLU is not cut at 6, the first block is expanded too (by 1), and the
    blocks of 24 maps do not halve the picture. 32 pixels end in 2 x 2.
    """
    plan = [  # expansion, maps, blocks, stride of the first; a list for each stage that methods listen to
        [(1, 8, 1, 1), (6, 12, 2, 1)],
        [(6, 16, 3, 2)],
        [(6, 32, 4, 2), (6, 48, 3, 1)],
        [(6, 80, 3, 2), (6, 160, 1, 1)],
    ]
    layers, width_in = [], 16
    for stage in plan:
        blocks = []
        for expansion, width, count, stride in stage:
            for i in range(count):
                blocks.append(Inverted(width_in, width, expansion, stride if i == 0 else 1))
                width_in = width
        layers.append(nn.Sequential(*blocks))
    net = finish(normed(3, 16, stride=2), layers, normed(width_in, 1280, 1), 1280, out_dim)
    return start(net, head="small")


def shufflenetv1(out_dim: int) -> nn.Sequential:
    """Zhang et al. 2018 with 3 groups; a 1 x 1 stem keeps the size. 32 pixels end in 4 x 4."""
    layers = []
    for (width_in, width), count in zip(pairwise((24, 240, 480, 960)), (4, 8, 4), strict=True):
        # On 24 maps, three groups would see too little each.
        first = Shuffled(width_in, width, groups=1 if width_in == 24 else 3, halve=True)
        layers.append(nn.Sequential(first, *[Shuffled(width, width, groups=3) for _ in range(count - 1)]))
    return finish(normed(3, 24, 1), layers, None, 960, out_dim)


def shufflenetv2(out_dim: int) -> nn.Sequential:
    """Ma et al. 2018 at width 1; a 1 x 1 stem keeps the size. 32 pixels end in 4 x 4."""
    layers = []
    for (width_in, width), count in zip(pairwise((24, 116, 232, 464)), (3, 7, 3), strict=True):
        layers.append(nn.Sequential(Halved(width_in, width), *[Split(width) for _ in range(count)]))
    return finish(normed(3, 24, 1), layers, normed(464, 1024, 1), 1024, out_dim)


class Inverted(nn.Module):
    """Widen, look at each map alone, narrow: [N, width_in, H, W] -> [N, width, H/s, W/s], no ReLU at the end."""

    def __init__(self, width_in: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.widen = normed(width_in, inner, 1)
        self.depthwise = normed(inner, inner, 3, stride, groups=inner)
        self.narrow = normed(inner, width, 1, relu=False)
        self.adds = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        out = self.narrow(self.depthwise(self.widen(x)))
        return x + out if self.adds else out


class Shuffled(nn.Module):
    """ShuffleNet's unit; one that halves the size stacks its maps on the averaged input instead of adding them.

    Args:
        groups: of the first convolution; the last always has three.
    """

    def __init__(self, width_in: int, width: int, groups: int, halve: bool = False) -> None:
        super().__init__()
        width -= width_in if halve else 0
        self.groups, inner = groups, width // 4
        self.squeeze = normed(width_in, inner, 1, groups=groups)
        self.depthwise = normed(inner, inner, 3, 2 if halve else 1, groups=inner)
        self.expand = normed(inner, width, 1, groups=3, relu=False)
        self.pool = nn.AvgPool2d(3, 2, 1) if halve else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.depthwise(shuffle(self.squeeze(x), self.groups)))
        return F.relu(out + x if self.pool is None else torch.cat([out, self.pool(x)], 1))


class Halved(nn.Module):
    """ShuffleNetV2's first unit of a stage: two branches over all maps, half of `width` each, at half the size."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.left = nn.Sequential(normed(width_in, width_in, 3, 2, width_in, relu=False), normed(width_in, half, 1))
        self.right = nn.Sequential(
            normed(width_in, half, 1), normed(half, half, 3, 2, half, relu=False), normed(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


class Split(nn.Module):
    """ShuffleNetV2's other units: half of the maps pass as they are, the other half is convolved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            normed(half, half, 1), normed(half, half, 3, 1, half, relu=False), normed(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, seen = x.chunk(2, dim=1)
        return shuffle(torch.cat([kept, self.branch(seen)], 1), 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the maps of [N, C, H, W] out like cards: the next group's layer sees some of each group before."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
