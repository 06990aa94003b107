"""Plain convolutions, one after another."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sftc.models.cifar.layers import finish, start


def vgg(narrow: int, wide: int, out_dim: int) -> nn.Sequential:
    """Simonyan & Zisserman 2015 with BatchNorm, and one dense layer on averaged maps instead of their three.

    Pictures of 32 pixels end in 4 x 4: the last stage is not halved, the four before it are stem to `layer3`.

    Args:
        narrow: convolutions in the stages of 64 and 128 maps.
        wide: convolutions in those of 256, 512 and 512. One each is vgg8, two each vgg13.
    """
    stages, width_in = [], 3
    for stage, (width, count) in enumerate([(64, narrow), (128, narrow), (256, wide), (512, wide), (512, wide)]):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if 0 < stage < 4:
            layers["pool"] = nn.MaxPool2d(2)
        for i in range(1, count + 1):
            # The bias is one that the norm takes away again, but it is counted in the published size.
            layers[f"conv{i}"] = nn.Conv2d(width_in, width, 3, padding=1)
            layers[f"norm{i}"] = nn.BatchNorm2d(width)
            layers[f"act{i}"] = nn.ReLU()
            width_in = width
        stages.append(nn.Sequential(layers))
    return start(finish(stages[0], stages[1:], None, width_in, out_dim), head="small")
