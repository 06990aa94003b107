"""Means: of scores, of logits, weighted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sftc.errors import Refused, choose
from sftc.fusion import simplex
from sftc.fusion.measures import known_columns, row_values
from sftc.fusion.pooling import Pooling, given, pool
from sftc.fusion.targets import PROBABILITIES
from sftc.types import Task

HOW = ("given", "score", "nll")


class Mean(Pooling):
    """The mean of probabilities, or of values."""

    name = "mean"

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return pool(scores).to(scores.dtype)


class MeanLogit(Pooling):
    """The mean of logits: of classes the normalised geometric mean of probabilities. One sure "no" weighs heavily."""

    name = "mean_logit"
    kinds = PROBABILITIES
    instead = "fuse=mean, which is the same for values"

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return self.task.scores(pool(scores, change=self.task.logits)).to(scores.dtype)


class Weighted(Pooling):
    """The mean with a weight per member.

    Args:
        how: given: `weights`. score: by accuracy above that of guessing (1/C, of labels 1/2), of values by 1 / mean
            squared error, which is best for independent errors. nll: the weights on the simplex of least NLL, of
            values of least squared error; a convex problem.
    """

    name = "weighted"

    def __init__(self, task: Task, how: str = "nll", weights: Sequence[float] | None = None) -> None:
        super().__init__(task)
        self.how = choose("how", how, HOW)
        self.needs_fit = how != "given"
        if (weights is not None) != (how == "given"):
            raise Refused("how=given and weights=[one number per member] go together; give both or neither")
        if weights is not None:
            numbers = given(self.name, "weights", weights)
            self.learnt = {"weights": numbers / numbers.sum()}

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        if self.how == "score":
            self.learnt = {"weights": self._by_score(scores, target)}
        elif self.how == "nll":
            said, truth = known_columns(self.task, scores, target)
            weights = simplex.least_nll(said) if truth is None else simplex.least_squares(said, truth)
            self.learnt = {"weights": weights}

    def _by_score(self, scores: Tensor, target: Tensor) -> Tensor:
        metric = "rmse" if self.kind == "values" else "accuracy"
        mean = torch.stack([row_values(self.task, metric, member, target).nanmean() for member in scores])
        if bool(mean.isnan().all()):
            raise Refused("how=score finds no labelled row with an answer; give validation rows with labels")
        if self.kind == "values":
            worth = 1 / mean.clamp_min(1e-12 * float(mean.nan_to_num().max()) + 1e-300)
        else:
            worth = (mean - (1 / self.task.out_dim if self.kind == "classes" else 0.5)).clamp_min(0)
        worth = worth.nan_to_num(0.0)  # who answered no labelled row has shown nothing
        return worth / worth.sum() if float(worth.sum()) else torch.full_like(worth, 1 / len(worth))

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return pool(scores, self.fitting(self.part("weights"), scores)).to(scores.dtype)
