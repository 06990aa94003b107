"""A mask is one more channel of its picture: a class for every pixel, as uint8, until the geometry is done."""

from __future__ import annotations

import torch
from torch import Tensor

UNKNOWN = 255  # in the channel: no class; so there may be 255 of them
MOST = 255
_AT_ONCE = 64  # masks that are counted at once


def parted(raw: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, C + 1, H, W] -> pictures [n, C, H, W] and masks [n, 1, H, W], unknown where the row's target is -1."""
    return raw[:, :-1], raw[:, -1:].masked_fill((row < 0).view(-1, 1, 1, 1), UNKNOWN)


def target(mask: Tensor) -> Tensor:
    """Long [n, H, W] of masks [n, 1, H, W]: -1 where nothing is known."""
    return mask[:, 0].long().masked_fill_(mask[:, 0] == UNKNOWN, -1)


def counts(table, rows: Tensor, classes: int, skip: bool = False) -> Tensor:
    """Long [classes]: pixels of each class in the masks of `rows`; those that cannot be read have none if `skip`.

    Raises:
        Refused: a mask cannot be read, and not `skip`.
    """
    out = torch.zeros(256, dtype=torch.long)
    for some in rows.split(_AT_ONCE):
        out += torch.bincount(table.masks(some, {} if skip else None).flatten().long(), minlength=256)
    return out[:classes]
