"""Boosting as arithmetic on row weights: SAMME for classes (Zhu et al. 2009), AdaBoost.R2 for values (Drucker 1997)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sftc.errors import Refused, choose

LOSSES = ("linear", "square", "exponential")


class Round:
    """What one round of boosting leaves."""

    __slots__ = ("error", "row_weight", "stop", "weight")

    def __init__(self, row_weight: Tensor, weight: float, error: float, stop: str | None) -> None:
        self.row_weight = row_weight  # [N] for the next member, with the sum of the old ones
        self.weight = weight  # of this member; 0: leave it out (unless it is the only one)
        self.error = error  # its weighted error, in [0, 1]
        self.stop = stop  # None; "perfect": keep it, no row is left to learn from; "chance": it is no better than that


def samme(row_weight: Tensor, miss: Tensor, classes: int, rate: float = 1.0) -> Round:
    """A round of SAMME: rows that were missed count more next time.

    Args:
        row_weight: [N], what rows counted when the member was trained.
        miss: [N], 1 where it is wrong (a share of labels may be); NaN rows (unlabelled) keep their weight.
        classes: K; an error of 1 - 1/K or more is that of guessing, and ends the boosting without this member.
        rate: multiplies the weight of the member.
    """
    w, seen = row_weight.double(), ~miss.isnan() & (row_weight > 0)
    least = _half_a_row(seen)
    wrong = miss.double().nan_to_num(0.0)
    error = float((w * wrong)[seen].sum() / w[seen].sum())
    if not error < 1 - 1 / classes:
        return Round(row_weight, 0.0, error, "chance")
    floored = max(error, least)
    weight = rate * (math.log((1 - floored) / floored) + math.log(classes - 1))
    if error <= 0:
        return Round(row_weight, weight, 0.0, "perfect")
    return Round(_rescaled(w, w * (weight * wrong).exp(), seen).to(row_weight.dtype), weight, error, None)


def r2(row_weight: Tensor, error: Tensor, loss: str = "linear", rate: float = 1.0) -> Round:
    """A round of AdaBoost.R2: rows that were met well count less next time.

    Args:
        row_weight: [N], what rows counted when the member was trained.
        error: [N], distance of answer and truth, >= 0; NaN rows (unlabelled) keep their weight.
        loss: of e = error / largest error: linear e, square e^2, exponential 1 - exp(-e). A mean of 1/2 or more ends
            the boosting without this member.
        rate: multiplies the weight of the member.
    """
    choose("loss", loss, LOSSES)
    w, seen = row_weight.double(), ~error.isnan() & (row_weight > 0)
    least = _half_a_row(seen)
    e = error.double().nan_to_num(0.0)
    e = e / e[seen].max().clamp_min(torch.finfo(torch.float64).tiny)
    e = e.square() if loss == "square" else 1 - (-e).exp() if loss == "exponential" else e
    mean = float((w * e)[seen].sum() / w[seen].sum())
    if mean >= 0.5:
        return Round(row_weight, 0.0, mean, "chance")
    floored = max(mean, least)
    beta = floored / (1 - floored)
    weight = -rate * math.log(beta)
    if mean <= 0:
        return Round(row_weight, weight, 0.0, "perfect")
    return Round(_rescaled(w, w * beta ** (rate * (1 - e)), seen).to(row_weight.dtype), weight, mean, None)


def _half_a_row(seen: Tensor) -> float:
    """An error of 0 would weigh infinitely: it counts as half a row, less than any error that can be seen."""
    rows = int(seen.sum())
    if not rows:
        raise Refused("boosting has no labelled row of weight above 0; give training rows with labels")
    return 0.5 / (rows + 1)


def _rescaled(old: Tensor, new: Tensor, seen: Tensor) -> Tensor:
    """`new` where seen, with the sum the seen rows had."""
    return torch.where(seen, new * (old[seen].sum() / new[seen].sum()), old)
