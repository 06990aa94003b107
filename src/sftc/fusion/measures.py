"""How good scores are, row by row: what weights are fitted on and what comparisons resample."""

from __future__ import annotations

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.pooling import absent
from sftc.fusion.targets import kind_of
from sftc.types import Task

FLOOR = torch.finfo(torch.float32).tiny  # as in `Classification.logits`: a probability of 0 costs 87, not infinity
METRICS = {"classes": ("accuracy", "nll"), "labels": ("accuracy", "nll"), "values": ("rmse",)}


def row_values(task: Task, metric: str, scores: Tensor, target: Tensor) -> Tensor:
    """[N] float64: 1 or 0 (accuracy; of labels the share that is right), nll, or the squared error (rmse).

    Averaged over the labels or values of a row that are known; NaN where none is, or without an answer.
    """
    answered = ~absent(scores)
    if kind_of(task) == "classes":
        known = (target >= 0) & answered
        safe = target.clamp_min(0)
        if metric == "accuracy":
            value = (first(scores) == safe).double()
        else:
            value = -scores.gather(1, safe[:, None])[:, 0].double().clamp_min(FLOOR).log()
        return value.masked_fill(~known, torch.nan)
    known = ~target.isnan() & answered[:, None]
    if metric == "accuracy":
        value = ((scores >= 0.5) == (target >= 0.5)).double()
    elif metric == "nll":
        value = -torch.where(target >= 0.5, scores.double(), 1 - scores.double()).clamp_min(FLOOR).log()
    else:
        value = (scores.double() - target.double()) ** 2
    return value.masked_fill(~known, 0).sum(1) / known.sum(1)  # 0 / 0 is the NaN of a row without any


def first(scores: Tensor) -> Tensor:
    """[N]: the class of each row. As argmax, of which numpy's is three times faster than torch's on short rows."""
    return torch.from_numpy(scores.detach().numpy().argmax(1))


def total(metric: str, mean: Tensor) -> Tensor:
    """A metric from means of row values: the root of rmse."""
    return mean.sqrt() if metric == "rmse" else mean


def measure(task: Task, metric: str, scores: Tensor, target: Tensor) -> float:
    """One metric of scores [N, C] over the rows that are labelled and answered; NaN if there is none."""
    return float(total(metric, row_values(task, metric, scores, target).nanmean()))


def known_columns(task: Task, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """What each member says of every known position, [M, K], and of values the truth, [K].

    For classes and labels that is the probability of what is true, all that an NLL needs: C times smaller than the
    scores. A gap is filled with the mean of those who answered, which pulls no weight anywhere.

    Raises:
        Refused: no row is labelled and answered.
    """
    truth = None
    if kind_of(task) == "classes":
        rows = (target >= 0).nonzero()[:, 0]
        said = scores[:, rows, target[rows]]
    else:
        known = ~target.isnan()
        truth = target[known]
        said = torch.stack([member[known] for member in scores])
        if kind_of(task) == "labels":
            yes = truth >= 0.5
            said, truth = torch.where(yes, said, 1 - said), None
    gap = said.isnan()
    if bool(gap.any()):
        middle = said.nanmean(0)
        keep = ~middle.isnan()
        said = torch.where(gap, middle, said)[:, keep]
        truth = None if truth is None else truth[keep]
    if not said.shape[1]:
        raise Refused("there is no labelled row with an answer to fit the fusion on; give validation rows with labels")
    return said, truth
