"""Which rows are held out together, and how a target is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from sftc.fusion.pooling import kind_of
from sftc.types import Task


def labelled(target: Tensor) -> Tensor:
    """[N]: rows with something known; -1 is unknown of classes, NaN of labels and values."""
    return ~target.isnan().all(1) if target.is_floating_point() else target >= 0


def assign(task: Task, target: Tensor, folds: int, seed: int = 0) -> Tensor:
    """[N] number of the fold of each row, a pure function of (target, folds, seed). Each class is dealt out evenly, so
    folds of classes are stratified; unlabelled rows are dealt out like one class more."""
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    key = target[order] if kind_of(task) == "classes" else labelled(target)[order].byte()
    order = order[key.argsort(stable=True)]
    fold = torch.empty(len(target), dtype=torch.long)
    fold[order] = torch.arange(len(target)) % folds
    return fold


def hidden(target: Tensor, rows: Tensor) -> Tensor:
    """`target` with these rows unlabelled."""
    out = target.clone()
    out[rows] = float("nan") if out.is_floating_point() else -1
    return out
