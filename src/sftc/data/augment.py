"""Augmentation in two halves: `draw` looks parameters up in the random table, `apply` is a pure function of
(raw batch, parameters).

Order: resized crop, or pad-crop; flip; RandAugment or AutoAugment; erasing; mixup or cutmix.
"""

from __future__ import annotations

import copy
import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.data import random
from sftc.errors import Refused, choose

VERSION = 1  # part of every fingerprint: raise it when the same parameters would give other pixels
POLICIES = ("imagenet", "cifar10", "svhn")
_GREY = 128  # erased pixels: about zero once the model has normalised them

# Columns of the random table, one range per operation, never reused.
_CROP, _FLIP, _RESIZED, _ERASE, _MIX = (0, 1), (2,), (3, 4, 5, 6), (7, 8, 9, 10, 11), (12, 13, 14, 15)
_AUTO, _RAND = tuple(range(16, 21)), tuple(range(32, 64))


class Draw:
    """Parameters of some rows: tensors [n, ...] on the device; on the host, operations [n, k]."""

    __slots__ = ("op", "tensors", "value")

    def __init__(self, tensors: dict[str, Tensor], op: np.ndarray | None, value: np.ndarray | None) -> None:
        self.tensors, self.op, self.value = tensors, op, value

    def to(self, device: torch.device) -> Draw:
        return Draw({k: v.to(device) for k, v in self.tensors.items()}, self.op, self.value)

    def unmixed(self, rows: Tensor) -> Draw:
        """The same, but `rows` (bool [n]) keep all of themselves: their partner is no picture."""
        alone = {"lam": 1, "blend": 1, "cut": 0}
        fill = {
            k: v.masked_fill(rows.view(-1, *[1] * (v.ndim - 1)), alone[k])
            for k, v in self.tensors.items()
            if k in alone
        }
        return Draw(self.tensors | fill, self.op, self.value)

    def __getitem__(self, rows: slice) -> Draw:
        op, value = self.op, self.value
        return Draw(
            {k: v[rows] for k, v in self.tensors.items()},
            None if op is None else op[rows],
            None if value is None else value[rows],
        )


def expect_within(augment: Any, **most: float) -> None:
    """Raises Refused: an option of it is below 0, or above its `most`."""
    for name, limit in most.items():
        if not 0 <= getattr(augment, name) <= limit:
            raise Refused(f"data.augment.{name}={getattr(augment, name)} must lie between 0 and {limit}")


class Augment:
    """What training images go through. Everything off by default.

    Args:
        crop: pixels of black padding around the image before a crop of the old size is taken at random.
        flip: share of images mirrored left to right.
        resized_crop: smallest share of the area a random crop, stretched to the old size, keeps; 1 is off.
        randaugment: operations per image (RandAugment, 2 is usual), `magnitude` 0..30 their strength.
        autoaugment: a published policy: imagenet, cifar10 or svhn; "none" is off.
        erasing: share of images that lose a random rectangle (2 to 33 % of the area).
        mixup, cutmix: the alpha of Beta(alpha, alpha), from which each row draws how much of itself it keeps;
            the rest is its partner, the row at the mirrored place of the batch. With both, each row takes one
            of them, by a fair coin.

    Raises:
        Refused: two options that exclude each other, or a value out of range.
    """

    def __init__(
        self,
        *,
        crop: int = 0,
        flip: float = 0.0,
        resized_crop: float = 1.0,
        randaugment: int = 0,
        magnitude: int = 9,
        autoaugment: str = "none",
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        self.crop, self.flip, self.resized_crop, self.erasing = crop, flip, resized_crop, erasing
        self.randaugment, self.magnitude = randaugment, magnitude
        self.autoaugment = choose("data.augment.autoaugment", autoaugment, ("none", *POLICIES))
        self.mixup, self.cutmix = mixup, cutmix
        expect_within(self, crop=1 << 16, flip=1, resized_crop=1, randaugment=16, magnitude=30, erasing=1)
        if resized_crop == 0 or min(mixup, cutmix) < 0:
            raise Refused("data.augment: resized_crop must be above 0 (1: off), mixup and cutmix at least 0 (0: off)")
        if randaugment and autoaugment != "none":
            raise Refused("data.augment: randaugment and autoaugment exclude each other; set one to 0 or none")
        if crop and resized_crop < 1:
            raise Refused("data.augment: crop and resized_crop exclude each other; set crop=0 or resized_crop=1")

    @property
    def mixes(self) -> bool:
        """Whether batches carry partners."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def active(self) -> bool:
        return self.moves or self.resized_crop < 1 or self.colours or self.erasing > 0 or self.mixes

    @property
    def moves(self) -> bool:
        return self.crop > 0 or self.flip > 0

    @property
    def colours(self) -> bool:
        return self.randaugment > 0 or self.autoaugment != "none"

    def unmixed(self) -> Augment:
        """The same without partners: what happens to each picture before it is mixed."""
        alone = copy.copy(self)
        alone.mixup = alone.cutmix = 0.0
        return alone

    def identity(self) -> str:
        """Names the settings: equal strings give equal pixels for the same seed, row and view."""
        names = (
            "crop",
            "flip",
            "resized_crop",
            "randaugment",
            "magnitude",
            "autoaugment",
            "erasing",
            "mixup",
            "cutmix",
        )
        return f"v{VERSION}:" + ",".join(f"{k}={getattr(self, k)}" for k in names)

    def draw(self, seed: int, row: np.ndarray, view: np.ndarray, shape: tuple[int, ...]) -> Draw:
        """Parameters for images of `shape` (C, H, W), a pure function of (seed, row, view) for each row."""
        height, width = shape[1:]
        look = functools.partial(random.uniform, seed, row, view)
        t: dict[str, np.ndarray] = {}
        op = value = None
        if self.resized_crop < 1:
            t["region"] = _region(look(_RESIZED), self.resized_crop)
        if self.crop:
            top_left = (look(_CROP) * (2 * self.crop + 1)).astype(np.int64)
            t["offset"] = top_left[:, 0] * (width + 2 * self.crop) + top_left[:, 1]
        if self.flip:
            t["flip"] = look(_FLIP)[:, 0] < self.flip
        if self.randaugment:
            u = look(_RAND[: 2 * self.randaugment])
            op, value = _ops().rand_augment(u, self.magnitude, height, width)
        elif self.autoaugment != "none":
            op, value = _ops().auto_augment(look(_AUTO), self.autoaugment, height, width)
        if self.erasing:
            t["erase"] = _erase_boxes(look(_ERASE), self.erasing, height, width)
        if self.mixes:
            t.update(_mixing(look(_MIX), self.mixup, self.cutmix, height, width))
        return Draw({k: torch.from_numpy(v) for k, v in t.items()}, op, value)

    def apply(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Augment uint8 [n, C, H, W].

        Returns:
            The images (float32 in 0..255 after mixup) and, after mixing, each row's own share [n], else None.
        """
        t = draw.tensors
        if "region" in t:
            images = _stretch(images, t["region"])
        if self.moves:
            images = shift_flip(images, self.crop, t.get("offset"), t.get("flip"))
        if draw.op is not None and draw.value is not None:
            for layer in range(draw.op.shape[1]):
                images = _ops().apply(images, draw.op[:, layer], draw.value[:, layer])
        if "erase" in t:
            images = images.masked_fill(_inside(t["erase"], images), _GREY)
        lam = t.get("lam")
        if lam is not None:
            partner = images.flip(0)
            if "cut" in t:
                images = torch.where(_inside(t["cut"], images), partner, images)
            if "blend" in t:
                own = t["blend"].view(-1, 1, 1, 1)
                images = images.float() * own + partner.float() * (1 - own)
        return images, lam

    def follow(self, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Move masks uint8 [n, 1, H, W] as `apply` moves their images, to the nearest pixel; colours are not theirs.

        What is erased keeps its class; what comes in from outside has none.

        Returns:
            The masks, and each row's own share [n], or None: where cutmix pasted, the classes came along, and all of
            the row is its own; where mixup blended, the partner's classes count beside.
        """
        t = draw.tensors
        mask = mask + 1  # unknown, 255, is 0 now: the black that comes in from outside
        if "region" in t:
            mask = _stretch(mask, t["region"], "nearest")
        if self.moves:
            mask = shift_flip(mask, self.crop, t.get("offset"), t.get("flip"))
        if draw.op is not None and draw.value is not None:
            for layer in range(draw.op.shape[1]):
                mask = _ops().apply(mask, _ops().moving(draw.op[:, layer]), draw.value[:, layer])
        mask = mask - 1
        if "cut" in t:
            mask = torch.where(_inside(t["cut"], mask), mask.flip(0), mask)
        return mask, t.get("blend")


def _ops() -> ModuleType:
    # Importing torchvision takes 1.5 s, and only these operations need it.
    from sftc.data import ops

    return ops


def shift_flip(images: Tensor, pad: int, offset: Tensor | None, flip: Tensor | None) -> Tensor:
    """Pad with black, crop back at `offset`, mirror where `flip`: one gather of whole image lines.

    Args:
        images: [n, C, H, W].
        offset: [n] long, top * padded width + left, or None for no shift.
        flip: [n] bool, or None for no mirroring.
    """
    n, c, h, w = images.shape
    start = _lines(n, c, h, w, pad, images.device)
    if offset is not None:
        start = start + offset.view(n, 1, 1)
    padded = images.new_zeros((1 if flip is None else 2, n, c, h + 2 * pad, w + 2 * pad))
    padded[0, :, :, pad : pad + h, pad : pad + w] = images
    if flip is not None:
        # The mirrored pictures lie behind the others: choosing one is a matter of where to start reading.
        padded[1, :, :, pad : pad + h, pad : pad + w] = images.flip(-1)
        start = start + flip.view(n, 1, 1) * padded[0].numel()
    # Every place is the start of a line of W pixels: overlapping lines of the same memory.
    lines = padded.view(-1).as_strided((padded.numel() - w + 1, w), (1, 1))
    return lines.index_select(0, start.view(-1)).view(n, c, h, w)


@functools.lru_cache(maxsize=16)
def _lines(n: int, c: int, h: int, w: int, pad: int, device: torch.device) -> Tensor:
    """Where the H lines of each of the n * C planes of a padded batch begin, long [n, C, H]."""
    tall, wide = h + 2 * pad, w + 2 * pad
    planes = torch.arange(n * c, device=device).view(n, c, 1) * (tall * wide)
    return planes + torch.arange(h, device=device) * wide


def _stretch(images: Tensor, region: Tensor, mode: str = "bilinear") -> Tensor:
    """Reading of the rectangle (top, left, height, width as shares of the image) at the old size."""
    top, left, height, width = region.unbind(1)
    zero = torch.zeros_like(top)
    theta = torch.stack((width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1), 1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    out = torch.nn.functional.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def _inside(box: Tensor, images: Tensor) -> Tensor:
    """Mask [n, 1, H, W] of boxes [n, 4] (top, bottom, left, right)."""
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = box.unsqueeze(-1).unbind(1)
    tall = (y >= top) & (y < bottom)
    wide = (x >= left) & (x < right)
    return (tall.unsqueeze(2) & wide.unsqueeze(1)).unsqueeze(1)


def _region(u: np.ndarray, least: float) -> np.ndarray:
    area = least + (1 - least) * u[:, 0]
    ratio = (4 / 3) ** (2 * u[:, 1] - 1)
    height = np.minimum(1, np.sqrt(area / ratio))
    width = np.minimum(1, np.sqrt(area * ratio))
    return np.stack((u[:, 2] * (1 - height), u[:, 3] * (1 - width), height, width), 1).astype(np.float32)


def _erase_boxes(u: np.ndarray, chance: float, h: int, w: int) -> np.ndarray:
    """Boxes (top, bottom, left, right) of random erasing (Zhong et al. 2020), empty for a spared row."""
    area = (0.02 + (1 / 3 - 0.02) * u[:, 1]) * h * w
    ratio = np.exp(np.log(10 / 3) * (2 * u[:, 2] - 1))  # between 0.3 and 3.3
    tall = np.clip(np.round(np.sqrt(area * ratio)), 1, h) * (u[:, 0] < chance)
    wide = np.clip(np.round(np.sqrt(area / ratio)), 1, w)
    top = np.floor(u[:, 3] * (h - tall + 1))
    left = np.floor(u[:, 4] * (w - wide + 1))
    return np.stack((top, top + tall, left, left + wide), 1).astype(np.int64)


def _mixing(u: np.ndarray, mixup: float, cutmix: float, h: int, w: int) -> dict[str, np.ndarray]:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019): `lam` [n]; `blend` [n], `cut` [n, 4] or both."""
    from scipy.special import betaincinv  # here, because it takes 0.2 s and most runs do not mix

    out: dict[str, np.ndarray] = {}
    blends = u[:, 3] < (mixup > 0) / ((mixup > 0) + (cutmix > 0))
    lam = np.ones(len(u))
    if mixup:
        lam = np.where(blends, betaincinv(mixup, mixup, u[:, 0]), lam)
        out["blend"] = lam.astype(np.float32)
    if cutmix:
        side = np.sqrt(1 - betaincinv(cutmix, cutmix, u[:, 0])) * ~blends
        y, x = u[:, 1] * h, u[:, 2] * w
        box = [np.clip(np.round(v), 0, most) for v, most in _edges(y, x, side, h, w)]
        out["cut"] = np.stack(box, 1).astype(np.int64)
        lam = np.where(blends, lam, 1 - (box[1] - box[0]) * (box[3] - box[2]) / (h * w))
    return out | {"lam": lam.astype(np.float32)}


def _edges(y: np.ndarray, x: np.ndarray, side: np.ndarray, h: int, w: int) -> list[tuple[np.ndarray, int]]:
    tall, wide = side * h / 2, side * w / 2
    return [(y - tall, h), (y + tall, h), (x - wide, w), (x + wide, w)]
