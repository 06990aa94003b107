"""Scores of a fusion on rows it was not fitted on, from the very rows it is later fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.folds import assign
from sftc.fusion.pooling import Pooling
from sftc.fusion.targets import kind_of, labelled
from sftc.fusion.temperature import Temperature
from sftc.types import Task

FOLDS = 5


def crossfit(
    fuser: Pooling,
    scores: Tensor,
    target: Tensor,
    features: Sequence[Tensor] = (),
    folds: int = FOLDS,
    seed: int = 0,
    row: Tensor | None = None,
) -> Tensor:
    """Fused scores [N, C] of all rows, each by a fuser and a temperature that have not seen its label.

    Folds are stratified by class and a pure function of (target, folds, seed). Unlabelled rows get scores too. `fuser`
    itself is fitted on all rows.

    Args:
        row: [N] which row each answer is about, where rows have several: those of one are held out together.

    Raises:
        Refused: fewer than two labelled rows or folds.
    """
    fold = held_together(fuser.task, target, folds, seed, row)
    out, _ = out_of_fold(fuser, scores, target, fold, features)
    return out if kind_of(fuser.task) == "values" else tempered(Temperature(fuser.task), out, target, fold)[0]


def out_of_fold(
    fuser: Pooling, scores: Tensor, target: Tensor, fold: Tensor, features: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Pooling]]:
    """`crossfit` without a temperature, by folds [N]; and the fuser of each fold, none if there is nothing to fit.

    Raises:
        Refused: there is only one fold.
    """
    if not fuser.needs_fit:
        return fuser.apply(scores, features), []
    _expect(fold)
    parts = fuser.fit_folds(scores, target, fold, features)
    out = torch.empty(scores.shape[1:], dtype=scores.dtype)
    for k, part in enumerate(parts):
        held = _answers(fold, k)
        out[held] = part.apply(scores[:, held], [f[held] for f in features])
    return out, list(parts)


def tempered(temperature: Temperature, fused: Tensor, target: Tensor, fold: Tensor) -> tuple[Tensor, list[Temperature]]:
    """`fused` [N, C], of each fold [N] at a temperature fitted on the others; and these. `temperature` is of all."""
    _expect(fold)
    parts = temperature.fit_folds(fused, target, fold)
    out = fused.clone()
    for k, part in enumerate(parts):
        held = _answers(fold, k)
        out[held] = part.apply(fused[held])
    return out, parts


def held_together(task: Task, target: Tensor, folds: int = FOLDS, seed: int = 0, row: Tensor | None = None) -> Tensor:
    """[N] number of the fold of each answer, as of `crossfit`; one fold if there are not two labelled rows."""
    known = labelled(target)
    rows = int(known.sum()) if row is None else len(row[known].unique())
    return assign(task, target, max(1, min(folds, rows)), seed, row)


def _answers(fold: Tensor, k: int) -> Tensor | slice:
    """Which answers are of fold k: a slice where folds are sorted, so that no scores are copied."""
    held = (fold == k).nonzero()[:, 0]
    if len(held) and int(held[-1]) - int(held[0]) + 1 == len(held):
        return slice(int(held[0]), int(held[-1]) + 1)
    return held


def _expect(fold: Tensor) -> None:
    if int(fold.max()) < 1:
        raise Refused("cross-fitting needs 2 folds of 2 labelled rows at least; use fuse=mean, or more validation rows")
