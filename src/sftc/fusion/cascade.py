"""A cascade: cheap members answer what they are sure of, the others are asked only about the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.measures import row_values
from sftc.fusion.pooling import Pooling, absent, given, pool
from sftc.fusion.targets import PROBABILITIES
from sftc.types import Task


class Cascade(Pooling):
    """Members in the order of their cost. Stage k answers with the mean of the first k if that is confident enough.

    Thresholds are the lowest that, on the rows of the fit, cost no more accuracy against the mean of all than `slack`;
    the first stages may use it up. Confidence is the highest probability, of labels the mean of 2 |p - 1/2|.
    After `apply`: `shares` [M] of rows that each stage answered, `cost` a row in the units of `costs`.

    Args:
        costs: one number per member: milliseconds, parameters. Ties go to the earlier.
        slack: accuracy that may be lost, in [0, 1].
    """

    name = "cascade"
    kinds = PROBABILITIES
    instead = "fuse=mean: values have no confidence to stop at"
    needs_fit = True

    def __init__(self, task: Task, costs: Sequence[float] | None = None, slack: float = 0.0) -> None:
        super().__init__(task)
        self.costs = given(self.name, "costs", costs)
        if not 0 <= slack <= 1:
            raise Refused(f"slack={slack} must be in [0, 1]: a share of rows")
        self.slack = slack
        self.shares = torch.zeros(len(self.costs), dtype=torch.float64)
        self.cost = float("nan")

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        self._learn(scores, target, self._full(scores, target))

    def fit_folds(self, scores: Tensor, target: Tensor, fold: Tensor, features: Sequence[Tensor] = ()) -> list[Self]:
        full, parts = self._full(scores, target), self._copies(fold)
        for k, part in enumerate(parts):
            part._learn(scores, target, full.masked_fill(fold == k, torch.nan))
        self._learn(scores, target, full)
        return parts

    def _full(self, scores: Tensor, target: Tensor) -> Tensor:
        """[N]: how right the mean of all members is; NaN where that is not known."""
        return row_values(self.task, "accuracy", pool(scores), target)

    def _learn(self, scores: Tensor, target: Tensor, full: Tensor) -> None:
        """From the rows of which `full` [N] is known."""
        order = self.fitting(self.costs, scores).argsort(stable=True)
        rows = (~full.isnan()).nonzero()[:, 0]
        if not len(rows):
            raise Refused("fuse=cascade finds no labelled row with an answer; give validation rows with labels")
        # Row values are shares of a row; sums of them carry rounding, which must not cost a row.
        budget = self.slack * len(rows) + 1e-9
        bars = torch.full((len(scores),), -torch.inf, dtype=torch.float64)  # the last answers whatever is left
        stages = _Stages(scores, order, rows)
        for k in range(len(scores) - 1):
            mean = stages.ask()
            sure = self._confidence(mean)
            harm = full[stages.rows] - row_values(self.task, "accuracy", mean, target[stages.rows])
            harm = harm.nan_to_num(0.0)
            bars[k] = _lowest_bar(sure, harm, budget)
            done = sure >= bars[k]
            budget -= float(harm[done].sum())
            stages.leave(done)
        self.learnt = {"order": order, "bars": bars, "costs": self.costs}

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        order, bars = self.fitting(self.part("order"), scores), self.part("bars")
        out = torch.full(scores.shape[1:], torch.nan, dtype=torch.float64)
        shares = torch.zeros(len(scores), dtype=torch.float64)
        stages = _Stages(scores, order, torch.arange(scores.shape[1]))
        for k in range(len(scores)):
            mean = stages.ask()
            done = self._confidence(mean) >= bars[k]
            out[stages.rows[done]] = mean[done]
            shares[k] = done.sum() / max(1, scores.shape[1])
            stages.leave(done)
        self.shares = shares
        self.cost = float((shares * self.part("costs")[order].cumsum(0)).sum())
        return out.to(scores.dtype)

    def _confidence(self, mean: Tensor) -> Tensor:
        """[N]; -1 without an answer."""
        sure = mean.amax(1) if self.kind == "classes" else (2 * mean - 1).abs().mean(1)
        return sure.nan_to_num(-1.0)


class _Stages:
    """The mean of one member more at every stage, of the rows that are left."""

    def __init__(self, scores: Tensor, order: Tensor, rows: Tensor) -> None:
        self.members = [scores[m] for m in order.tolist()]
        self.rows = rows  # [n] still to be answered
        self.total = torch.zeros(len(rows), scores.shape[2], dtype=torch.float64)
        self.count = torch.zeros(len(rows), 1, dtype=torch.float64)

    def ask(self) -> Tensor:
        """[n, C]; NaN as long as nobody answered."""
        said = self.members.pop(0)[self.rows]
        gap = absent(said)[:, None]
        self.total += said.masked_fill(gap, 0) if bool(gap.any()) else said
        self.count += ~gap
        return self.total / self.count

    def leave(self, done: Tensor) -> None:
        """Go on without these rows."""
        if bool(done.any()):
            self.rows, self.total, self.count = self.rows[~done], self.total[~done], self.count[~done]


def _lowest_bar(sure: Tensor, harm: Tensor, budget: float) -> float:
    """The lowest confidence at which all rows above it together do no more harm than `budget`; inf if there is none."""
    value, order = sure.sort(descending=True, stable=True)
    harmed = harm[order].cumsum(0)
    last = torch.ones_like(value, dtype=torch.bool)
    last[:-1] = value[1:] < value[:-1]  # rows of one confidence are answered together
    fits = last & (harmed <= budget) & (value >= 0)
    return float(value[fits.nonzero()[-1, 0]]) if bool(fits.any()) else float("inf")
