"""What is asked of members: the kind of answer, and which rows have a known one."""

from __future__ import annotations

import torch
from torch import Tensor

from sftc.types import Task

KINDS = ("classes", "labels", "values")
ANY = frozenset(KINDS)
PROBABILITIES = frozenset({"classes", "labels"})


def kind_of(task: Task) -> str:
    """classes, labels or values."""
    return next(kind for kind in KINDS if kind in task.offers)


def labelled(target: Tensor) -> Tensor:
    """[N]: rows with something known; -1 is unknown of classes, NaN of labels and values."""
    return ~target.isnan().all(1) if target.is_floating_point() else target >= 0


def hidden(target: Tensor, rows: Tensor) -> Tensor:
    """`target` with these rows, by number or by mask, unlabelled."""
    out = target.clone()
    out[rows] = torch.nan if out.is_floating_point() else -1
    return out
