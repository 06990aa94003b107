"""Scores of a fusion on rows it was not fitted on, from the very rows it is later fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.folds import assign, hidden, labelled
from sftc.fusion.pooling import Pooling, kind_of
from sftc.fusion.temperature import Temperature
from sftc.types import Task

FOLDS = 5


def crossfit(
    make_fuser: Callable[[], Pooling],
    scores: Tensor,
    target: Tensor,
    features: Sequence[Tensor] = (),
    folds: int = FOLDS,
    seed: int = 0,
    row: Tensor | None = None,
) -> Tensor:
    """Fused scores [N, C] of all rows, each by a fuser and a temperature that have not seen its label.

    Folds are stratified by class and a pure function of (target, folds, seed). Unlabelled rows get scores too.

    Args:
        row: [N] which row each answer is about, where rows have several: those of one are held out together.

    Raises:
        Refused: fewer than two labelled rows or folds.
    """
    raw = out_of_fold(make_fuser, scores, target, features, folds, seed, row)
    return tempered(make_fuser().task, raw, target, folds, seed, row)


def out_of_fold(
    make_fuser: Callable[[], Pooling],
    scores: Tensor,
    target: Tensor,
    features: Sequence[Tensor] = (),
    folds: int = FOLDS,
    seed: int = 0,
    row: Tensor | None = None,
    fitted: Callable[[Pooling], None] = lambda fuser: None,
) -> Tensor:
    """`crossfit` without a temperature: what the temperature that is kept is best fitted on.

    A fold is held out by hiding its labels, which `Pooling.fit` leaves out: no copy of the scores is made for it.

    Args:
        fitted: is handed the fuser of each fold, in their order; none if a rule has nothing to fit.
    """
    fuser = make_fuser()
    if not fuser.needs_fit:
        return fuser.apply(scores, features)
    fold = _folds(fuser.task, target, folds, seed, row)
    out = torch.empty(scores.shape[1:], dtype=scores.dtype)
    for k in range(int(fold.max()) + 1):
        held = (fold == k).nonzero()[:, 0]
        fuser = make_fuser()
        fuser.fit(scores, hidden(target, held), features)
        fitted(fuser)
        out[held] = fuser.apply(scores[:, held], [f[held] for f in features])
    return out


def tempered(
    task: Task, fused: Tensor, target: Tensor, folds: int = FOLDS, seed: int = 0, row: Tensor | None = None
) -> Tensor:
    """`fused` [N, C] at a temperature: of each fold at the one fitted on the others. Values are passed on."""
    if kind_of(task) == "values":
        return fused
    fold = _folds(task, target, folds, seed, row)
    out = fused.clone()
    last = 0.0
    for k in range(int(fold.max()) + 1):
        held = fold == k
        temperature = Temperature(task).fit(fused[~held], target[~held], start=last)
        out[held] = temperature.apply(fused[held])
        last = temperature.log_t
    return out


def _folds(task: Task, target: Tensor, folds: int, seed: int, row: Tensor | None) -> Tensor:
    known = labelled(target)
    rows = int(known.sum()) if row is None else len(row[known].unique())
    if folds < 2 or rows < 2:
        raise Refused(f"cross-fitting needs 2 folds and 2 labelled rows at least; there are {folds} and {rows}")
    return assign(task, target, min(folds, rows), seed, row)
