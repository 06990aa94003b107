"""Values for each row, and quantiles of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import Refused
from sftc.metrics import ValueMeter
from sftc.tasks.fitting import loss_of, monitor_of


class Regression:
    """K values per row. Models answer in standard units; scores, targets and metrics are in the data's own.

    Args:
        names: of the K values; with quantiles, of each value's quantiles one after another: the target stands once for
            each of them.
        mean, std: [K], of the training rows.
        loss: mse; mae; huber (`delta` in standard units); quantile (pinball; Koenker and Bassett 1978).
        quantiles: of each value, for loss=quantile: shares of the truth that lie below the answer.
    """

    offers = frozenset({"values"})
    losses = ("mse", "huber", "mae", "quantile")
    metrics = ("r2", "mae", "rmse", "loss")

    def __init__(
        self,
        names: Sequence[str],
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        loss: str = "auto",
        delta: float = 1.0,
        quantiles: Sequence[float] = (),
        monitor: str = "auto",
    ) -> None:
        self.classes = list(names)
        self.out_dim = len(self.classes)
        self.mean = torch.zeros(self.out_dim) if mean is None else mean.float()
        self.std = torch.ones(self.out_dim) if std is None else std.float()
        # A constant target has no spread to divide by.
        self.std = torch.where(self.std > 0, self.std, 1.0)
        self.loss_name = loss_of(type(self), "values", loss)
        self.delta = delta
        self.quantiles = list(quantiles)
        if self.quantiles and self.out_dim % len(self.quantiles):
            raise Refused(f"{self.out_dim} outputs are not {len(self.quantiles)} quantiles of each value")
        self.level = torch.tensor(self.quantiles * (self.out_dim // max(1, len(self.quantiles))))
        if self.quantiles:
            self.offers = self.offers | {"quantiles"}
        if monitor == "auto" and self.quantiles:
            monitor = "loss"  # r2 and the others look at the middle quantile alone
        self.monitor, self.maximize = monitor_of(type(self), monitor)

    @property
    def middle(self) -> list[int]:
        """Which outputs stand for the values: all, or of each its quantile that is nearest to the median."""
        q = len(self.quantiles)
        if not q:
            return list(range(self.out_dim))
        at = min(range(q), key=lambda i: abs(self.quantiles[i] - 0.5))
        return list(range(at, self.out_dim, q))

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean.device != like.device:
            self.mean, self.std, self.level = (t.to(like.device) for t in (self.mean, self.std, self.level))
        return self.mean, self.std

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        mean, std = self._scale(logits)
        known = ~target.isnan()
        goal = torch.where(known, (target - mean) / std, 0.0)
        if self.loss_name == "huber":
            value = F.huber_loss(logits, goal, reduction="none", delta=self.delta)
        elif self.loss_name == "mae":
            value = (logits - goal).abs()
        elif self.loss_name == "quantile":
            short = goal - logits
            value = torch.maximum(self.level * short, (self.level - 1) * short)
        else:
            value = (logits - goal) ** 2
        return torch.where(known, value, 0.0).sum(1) / known.sum(1).clamp_min(1)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return ((logits - teacher) ** 2).mean(1)

    def pinball(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Pinball loss [N] that the student's quantiles expect where the truth is drawn from the teacher's (Dabney et
        al. 2018, QR-DQN, whose levels lie evenly). Each of those stands for the shares of the truth that are nearer to
        its level than to another; so the loss is least where both say the same, as long as the teacher's rise.
        """
        level = self.level[: len(self.quantiles)].to(logits)
        edges = torch.cat([level.new_zeros(1), (level[1:] + level[:-1]) / 2, level.new_ones(1)])
        theirs, ours = (x.unflatten(1, (-1, len(level))) for x in (teacher, logits))
        short = theirs.unsqueeze(2) - ours.unsqueeze(3)  # [N, values, level of the student, level of the teacher]
        value = torch.maximum(level[:, None] * short, (level[:, None] - 1) * short)
        return (value * edges.diff()).sum(3).mean((1, 2))

    def labelled(self, target: Tensor) -> Tensor:
        return (~target.isnan()).any(1)

    def weight(self, target: Tensor) -> Tensor:
        return self.labelled(target).float()

    def scores(self, logits: Tensor) -> Tensor:
        mean, std = self._scale(logits)
        return logits * std + mean

    def logits(self, scores: Tensor) -> Tensor:
        mean, std = self._scale(scores)
        return (scores - mean) / std

    def hard(self, scores: Tensor) -> Tensor:
        raise Refused("values cannot be voted on; use fuse=mean or fuse=median")

    def miss(self, scores: Tensor, target: Tensor) -> Tensor:
        error = (scores - target).abs().mean(1)
        return error / error.max().clamp_min(torch.finfo(error.dtype).tiny)

    def agreement(self, scores: Tensor, other: Tensor) -> Tensor:
        """1 less the squared distance of both, in standard units of the target: [N]; its mean is like an R2."""
        return 1 - ((scores - other) / self._scale(scores)[1]).square().mean(1)

    def constant(self, target: Tensor) -> Tensor:
        """Standard units [1, K] of the best answer that looks at no row: mean or quantiles of `target` [N, K]."""
        if self.quantiles:
            best = [column.nanquantile(q) for column, q in zip(target.T, self.level.tolist(), strict=True)]
            return self.logits(torch.stack(best)[None])
        return self.logits(target.nanmean(0)[None])

    def flat(self, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scores(logits), target, index

    def meter(self, full: bool = True) -> ValueMeter:
        return ValueMeter(self, full)


def check_quantiles(quantiles: Sequence[float] | None) -> None:
    """Raises Refused: they do not rise from above 0 to below 1."""
    if quantiles is None:
        return
    numbers = all(isinstance(q, int | float) for q in quantiles)
    if not quantiles or not numbers or not all(a < b for a, b in itertools.pairwise([0, *quantiles, 1])):
        raise Refused(f"loss.quantiles={list(quantiles)} must rise between 0 and 1, such as [0.1,0.5,0.9]")
