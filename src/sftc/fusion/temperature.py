"""One temperature after pooling: the fused probabilities made sharper or softer as a whole (Guo et al. 2017).

Rows that are all right would be sharpened without end, and the first miss on others would cost more than all that was
gained (seen: a vote, right on all 144 rows). So half a row counts as missed, as narrowly as it can be; as in boosting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.pooling import absent
from sftc.fusion.targets import kind_of, labelled
from sftc.types import Task

WIDEST = 4.0  # |log T| ends here: rows that are all wrong would go on for ever
STEPS = 60
NEAR = 1e-2  # a step in log T after which Halley's next would be about its cube
DIGITS = 4  # of log T, where NLL is flat


class Temperature:
    """p^(1/T) / sum, of labels sigmoid(logit / T). Parametrised by log T, and 1 where that gives no lower NLL.

    Raises:
        Refused: values have no temperature.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        if kind_of(task) == "values":
            raise Refused("values have no temperature; leave it out")
        self.log_t = 0.0

    @property
    def value(self) -> float:
        return math.exp(self.log_t)

    def fit(self, scores: Tensor, target: Tensor) -> Temperature:
        """Find T on held-out scores [N, C]; unlabelled and unanswered rows are left out.

        Of n rows each counts to 0.5 / (n + 1) as one whose label is the likeliest other one (of labels: its opposite).
        """
        rows = _Rows(self.task, scores, target)
        self._learn(rows, slice(None), rows.nll(1.0))
        return self

    def fit_folds(self, scores: Tensor, target: Tensor, fold: Tensor) -> list[Temperature]:
        """`fit`; and for each fold of `fold` [N] another, found without its rows."""
        rows = _Rows(self.task, scores, target)
        plain = rows.nll(1.0)
        start = self._learn(rows, slice(None), plain)
        parts = [Temperature(self.task) for _ in range(int(fold.max()) + 1)]
        for k, part in enumerate(parts):
            part._learn(rows, fold[rows.at] != k, plain, start)
        return parts

    def _learn(self, rows: _Rows, keep: Tensor | slice, plain: Tensor, log_t: float = 0.0) -> float:
        """The log T of least NLL over the rows to `keep`; `plain` [R] is theirs at T = 1, `log_t` where to begin.

        What is minimised is convex in 1/T, so its slope says on which side of T to look on: Halley's step where that
        stays between the bounds known so far, else their middle in log T. It is rounded, so that nothing of where it
        began is left in it: that may have seen rows that are held out.
        """
        self.log_t = 0.0
        if not len(rows.at[keep]):
            return log_t
        aim = rows.aim(keep)
        low, high = -WIDEST, WIDEST
        for _ in range(STEPS):
            sharp = math.exp(-log_t)
            mean, bend, turn = (_mean(moment, keep) for moment in rows.moments(sharp))
            slope = mean - aim
            low, high = (log_t, high) if slope > 0 else (low, log_t)
            below = 2 * bend**2 - slope * turn
            halley = sharp - 2 * slope * bend / below if below > 0 else 0.0
            step = -math.log(halley) if halley > 0 else math.inf
            cubic = low <= step <= high
            before, log_t = log_t, step if cubic else (low + high) / 2
            if abs(log_t - before) < (NEAR if cubic else NEAR**3):
                break
        log_t = round(log_t, DIGITS)
        if _mean(rows.nll(math.exp(-log_t)), keep) < _mean(plain, keep):
            self.log_t = log_t
        return log_t

    def apply(self, scores: Tensor) -> Tensor:
        """[N, C]; the very same tensor at T = 1."""
        return scores if self.log_t == 0 else self.task.scores(self.task.logits(scores) / self.value)

    def state(self) -> dict[str, Tensor]:
        """log T, as a named array."""
        return {"log_t": torch.tensor(self.log_t, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of another one."""
        self.log_t = float(state["log_t"])


class _Rows:
    """NLL by sharp = 1/T of the labelled and answered rows; of labels, of each known one.

    It is A(sharp) - own * sharp, with A the log of what logits * sharp are normalised by: an exponential family.
    """

    def __init__(self, task: Task, scores: Tensor, target: Tensor) -> None:
        self.at = (labelled(target) & ~absent(scores)).nonzero()[:, 0]  # [R] which row of the scores each is
        if len(self.at) < len(target):
            scores, target = scores[self.at], target[self.at]
        self.logits = task.logits(scores)  # [R, C], of labels [R]
        # [R] what the mean logit of a row is held against: that of its label, and that of the likeliest other one.
        if kind_of(task) == "classes":
            self.own = self.logits.gather(1, target[:, None])[:, 0]
            self.other = self.logits.scatter(1, target[:, None], -torch.inf).amax(1)
        else:
            known = ~target.isnan()
            self.at, self.logits = self.at[known.nonzero()[:, 0]], self.logits[known]
            self.own, self.other = self.logits * target[known], self.logits * (1 - target[known])

    def aim(self, keep: Tensor | slice) -> float:
        missed = 0.5 / (len(self.at[keep].unique_consecutive()) + 1)
        return _mean((1 - missed) * self.own + missed * self.other, keep)

    def nll(self, sharp: float) -> Tensor:
        """[R]"""
        z = self.logits * sharp
        return (z.logsumexp(1) if z.ndim == 2 else F.softplus(z)) - self.own * sharp

    def moments(self, sharp: float) -> tuple[Tensor, Tensor, Tensor]:
        """[R] each: the first three derivatives of A, which are the first three central moments of the logit."""
        if self.logits.ndim == 2:
            p = (self.logits * sharp).softmax(1)
            mean, square, cube = (p.mul_(self.logits).sum(1) for _ in range(3))
            return mean, square - mean**2, cube - 3 * mean * square + 2 * mean**3
        z, p = self.logits, (self.logits * sharp).sigmoid()
        bend = p * (1 - p) * z**2
        return p * z, bend, bend * (1 - 2 * p) * z


def _mean(value: Tensor, keep: Tensor | slice) -> float:
    return float(value[keep].double().mean())
