"""Which rows are held out together."""

from __future__ import annotations

import torch
from torch import Tensor

from sftc.fusion.targets import kind_of, labelled
from sftc.types import Task


def assign(task: Task, target: Tensor, folds: int, seed: int = 0, row: Tensor | None = None) -> Tensor:
    """[N] number of the fold of each row, a pure function of (target, folds, seed). Each class is dealt out evenly, so
    folds of classes are stratified; unlabelled rows are dealt out like one class more.

    Args:
        row: [N] which row each answer is about, where rows have several: those of one row then stay together, and
            whole rows are dealt out, of whatever classes.
    """
    if row is not None and len(unique := row.unique()) < len(row):
        return assign(task, torch.full_like(unique, -1), folds, seed)[torch.searchsorted(unique, row)]
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    several = target.ndim > 1 and not target.is_floating_point()  # of a row: there is no class to deal it out by
    classes = kind_of(task) == "classes" and not several
    key = target[order] if classes else _some(target)[order].byte()
    order = order[key.argsort(stable=True)]
    fold = torch.empty(len(target), dtype=torch.long)
    fold[order] = torch.arange(len(target)) % folds
    return fold


def _some(target: Tensor) -> Tensor:
    """[N]: rows with something known, of whatever many answers."""
    known = labelled(target)
    return known if known.ndim == 1 else known.flatten(1).any(1)
