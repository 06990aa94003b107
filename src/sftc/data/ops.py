"""Image operations of AutoAugment (Cubuk et al. 2019) and RandAugment (Cubuk et al. 2020), for whole batches.

The same operations with the same strengths as torchvision's transforms, which draw one for the whole batch
from the global generator. Here each row names its own (operation, strength); rows that name the same go
through together, and each gets the bits it would have got alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as F

_BINS = 31  # RandAugment's magnitudes are 0..30
_AUTO_BINS = 10


def _affine(x: Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    center = [0.0, 0.0] if any(shear) else None
    return F.affine(x, angle=0.0, translate=list(shift), scale=1.0, shear=list(shear), center=center)


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


OPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda x, m: x,
    "ShearX": lambda x, m: _affine(x, shear=(_degrees(m), 0.0)),
    "ShearY": lambda x, m: _affine(x, shear=(0.0, _degrees(m))),
    "TranslateX": lambda x, m: _affine(x, shift=(int(m), 0)),
    "TranslateY": lambda x, m: _affine(x, shift=(0, int(m))),
    "Rotate": lambda x, m: F.rotate(x, angle=m),
    "Brightness": lambda x, m: F.adjust_brightness(x, brightness_factor=1.0 + m),
    "Color": lambda x, m: F.adjust_saturation(x, saturation_factor=1.0 + m),
    "Contrast": lambda x, m: F.adjust_contrast(x, contrast_factor=1.0 + m),
    "Sharpness": lambda x, m: F.adjust_sharpness(x, sharpness_factor=1.0 + m),
    "Posterize": lambda x, m: F.posterize(x, bits=int(m)),
    "Solarize": lambda x, m: F.solarize(x, threshold=255 * m),
    "AutoContrast": lambda x, m: F.autocontrast(x),
    "Equalize": lambda x, m: F.equalize(x),
    "Invert": lambda x, m: F.invert(x),
}
NAMES = list(OPS)
_RAND = NAMES[:-1]  # RandAugment leaves Invert out
_SIGNED = frozenset(NAMES[1:10])
_MOVING = np.array([name.startswith(("Shear", "Translate", "Rotate")) for name in NAMES])


@functools.cache
def strength(op: str, bin: int, bins: int, height: int, width: int) -> float:
    """What magnitude `bin` of `bins` means for an operation, without its sign (torchvision's scales)."""
    share = bin / (bins - 1)
    if op.startswith("Shear"):
        return 0.3 * share
    if op.startswith("Translate"):
        return 150.0 / 331.0 * (width if op.endswith("X") else height) * share
    if op == "Rotate":
        return 30.0 * share
    if op in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 0.9 * share
    if op == "Posterize":
        return float(8 - round(4 * share))
    if op == "Solarize":
        return 1.0 - share
    return 0.0


def rand_augment(u: np.ndarray, magnitude: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers [n, 2k] -> operations (numbers into NAMES) and signed strengths, both [n, k]."""
    op = (u[:, 0::2] * len(_RAND)).astype(np.int64)
    table = np.array([strength(name, magnitude, _BINS, height, width) for name in _RAND])
    signed = np.array([name in _SIGNED for name in _RAND])
    value = table[op]
    # Adding 0.0 turns -0.0 into 0.0, so that both fall into one group.
    return op, np.where(signed[op] & (u[:, 1::2] <= 0.5), -value, value) + 0.0


@functools.cache
def _policy(name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operation, probability and strength of a published policy, each [sub-policies, 2]."""
    rows = AutoAugment(AutoAugmentPolicy(name)).policies
    op = [[NAMES.index(o) for o, _, _ in pair] for pair in rows]
    chance = [[p for _, p, _ in pair] for pair in rows]
    value = [[strength(o, b or 0, _AUTO_BINS, height, width) for o, _, b in pair] for pair in rows]
    return np.array(op), np.array(chance), np.array(value)


def auto_augment(u: np.ndarray, policy: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers [n, 5] -> operations and signed strengths, both [n, 2]."""
    ops, chances, values = _policy(policy, height, width)
    pick = (u[:, 0] * len(ops)).astype(np.int64)
    op = np.where(u[:, 1:3] < chances[pick], ops[pick], 0)
    signed = np.array([name in _SIGNED for name in NAMES])
    value = np.where(op > 0, values[pick], 0.0)
    return op, np.where(signed[op] & (u[:, 3:5] <= 0.5), -value, value) + 0.0


def moving(op: np.ndarray) -> np.ndarray:
    """`op` [n] where it moves pixels, else nothing: what a mask goes through. All of these take the nearest pixel."""
    return np.where(_MOVING[op], op, 0)


def apply(images: Tensor, op: np.ndarray, value: np.ndarray) -> Tensor:
    """One layer: operation `op[i]` with strength `value[i]` on uint8 image i of [n, C, H, W]."""
    groups: dict[tuple[int, float], list[int]] = {}
    for i, key in enumerate(zip(op.tolist(), value.tolist(), strict=True)):
        if key[0]:
            groups.setdefault(key, []).append(i)
    if not groups:
        return images
    # One gather and one scatter for all groups: a copy to the device per group would cost more than the work.
    rows = torch.tensor([i for group in groups.values() for i in group], device=images.device)
    parts = images.index_select(0, rows).split([len(g) for g in groups.values()])
    done = [OPS[NAMES[k]](part, m) for (k, m), part in zip(groups, parts, strict=True)]
    return images.index_copy(0, rows, torch.cat(done))
