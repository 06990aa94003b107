"""The nets of the distillation field's standard comparison on CIFAR, made for pictures of 32 x 32.

Tian et al. 2020, "Contrastive Representation Distillation", fixed which depths and widths are compared; their
architectures, weights at the start and numbers of parameters are kept to the letter, because published accuracies
are of these nets and no others.

All have the same places to listen at: `net.stem`, `net.layer1` to `net.layer3` (`layer4` in vgg and mobilenetv2),
`net.flatten` (the pooled embedding) and `net.head`; the stem and layers are the features that the field's methods
match, in its order. They read any size from 8 pixels on, where the originals read 32 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from sftc.errors import Refused, choose, nearest
from sftc.models import heads, keys
from sftc.models.cifar import published
from sftc.models.cifar.mobile import mobilenetv2, shufflenetv1, shufflenetv2
from sftc.models.cifar.residual import resnet, wrn
from sftc.models.cifar.vgg import vgg
from sftc.models.size import LEAST
from sftc.models.vision import GREY, Vision, prepare
from sftc.types import Form

X4 = (32, 64, 128, 256)
NETS: dict[str, Callable[[int], nn.Sequential]] = {
    "resnet8": partial(resnet, 8),
    "resnet20": partial(resnet, 20),
    "resnet32": partial(resnet, 32),
    "resnet44": partial(resnet, 44),
    "resnet56": partial(resnet, 56),
    "resnet110": partial(resnet, 110),
    "resnet8x4": partial(resnet, 8, widths=X4),
    "resnet32x4": partial(resnet, 32, widths=X4),
    "wrn_16_1": partial(wrn, 16, 1),
    "wrn_16_2": partial(wrn, 16, 2),
    "wrn_40_1": partial(wrn, 40, 1),
    "wrn_40_2": partial(wrn, 40, 2),
    "vgg8": partial(vgg, 1, 1),
    "vgg13": partial(vgg, 2, 2),
    "mobilenetv2": mobilenetv2,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
}


def check(spec: Mapping[str, Any]) -> None:
    """What `build` would refuse whatever the data.

    Raises:
        Refused: no such net, a key it does not have, or `pretrained=true`.
    """
    name = choose("model.name", spec["name"], NETS)
    for key in keys.rest(spec):
        raise Refused(f"model.{key} is no key of model=cifar{nearest(key, keys.COMMON)}")
    if keys.pretrained(spec) == "true" and not spec.get("checkpoint"):
        raise Refused(f"model.pretrained=true: there are no weights of {name} to fetch; give model.checkpoint=PATH")


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Vision:
    """The net for pictures (C, H, W) at the size asked for; grey ones are repeated to RGB.

    Raises:
        Refused: what `check` refuses, or pictures that are neither grey nor RGB.
    """
    check(spec)
    name, facts, shape = spec["name"], {"pretrained": "no"}, form.shape
    if shape[0] not in (1, 3):
        raise Refused(f"model.name={name} reads grey or RGB, the data has {shape[0]} channels; use model=simple_cnn")
    wanted = keys.input_size(spec)
    if wanted == "auto":
        wanted = (max(shape[1], LEAST), max(shape[2], LEAST))
    pixels = wanted if isinstance(wanted, tuple) else (LEAST, LEAST)
    if min(pixels) < LEAST:
        raise Refused(f"model.input_size={min(pixels)} is not a size {name} can read; {LEAST} is")
    first = prepare(spec, channels=3, pixels=pixels, shape=shape, look=(GREY, GREY), facts=facts)
    model = Vision(first, NETS[name](out_dim), ["net.head"], facts)
    model.aliases = published.aliases(name, model.state_dict())
    return model


def unpool(_spec: Mapping[str, Any], net: nn.Module) -> str:
    """Make a net give its last map; -> the path of what gives it."""
    return heads.cut(net, "pool")
