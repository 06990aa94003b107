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
from sftc.fusion.folds import labelled
from sftc.fusion.pooling import kind_of
from sftc.types import Task

WIDEST = 4.0  # |log T| ends here: rows that are all wrong would go on for ever
STEPS = 60
NEAR = 1e-5  # in log T, where NLL is flat


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

    def fit(self, scores: Tensor, target: Tensor, start: float = 0.0) -> Temperature:
        """Find T on held-out scores [N, C]; unlabelled and unanswered rows are left out. `start` only saves steps.

        Of n rows each counts to 0.5 / (n + 1) as one whose label is the likeliest other one (of labels: its opposite).
        What is minimised is convex in 1/T, so its slope says on which side of T to look on: Newton's step where that
        stays between the bounds known so far, else their middle in log T.
        """
        self.log_t = 0.0
        keep = labelled(target) & ~scores.isnan().any(1)
        if not bool(keep.any()):
            return self
        logits, target = self.task.logits(scores[keep]), target[keep]
        aim = self._aim(logits, target)
        low, high, log_t = -WIDEST, WIDEST, start
        for _ in range(STEPS):
            sharp = math.exp(-log_t)
            slope, bend = self._slopes(logits, target, aim, sharp)
            low, high = (log_t, high) if slope > 0 else (low, log_t)
            newton = sharp - slope / bend if bend > 0 else 0.0
            step = -math.log(newton) if newton > 0 else math.inf
            before, log_t = log_t, step if low <= step <= high else (low + high) / 2
            if abs(log_t - before) < NEAR:
                break
        if self._nll(logits / math.exp(log_t), target) < self._nll(logits, target):
            self.log_t = log_t
        return self

    def _aim(self, logits: Tensor, target: Tensor) -> Tensor:
        """What the mean logit of a row is held against: the one of its label, and a little that of another."""
        if kind_of(self.task) == "classes":
            missed = 0.5 / (len(target) + 1)
            own = logits.gather(1, target[:, None])
            other = logits.scatter(1, target[:, None], -torch.inf).amax(1)
            return (1 - missed) * own[:, 0] + missed * other
        known = ~target.isnan()
        missed = 0.5 / (known.any(1).sum() + 1)
        return (1 - missed) * target[known] + missed * (1 - target[known])

    def _slopes(self, logits: Tensor, target: Tensor, aim: Tensor, sharp: float) -> tuple[float, float]:
        """First and second derivative of what is minimised by sharp = 1/T."""
        if kind_of(self.task) == "classes":
            p = (logits * sharp).softmax(1)
            weighted = p.mul_(logits)
            mean = weighted.sum(1)
            slope = mean - aim
            bend = (weighted * logits).sum(1) - mean**2
        else:
            known = ~target.isnan()
            z, p = logits[known], (logits[known] * sharp).sigmoid()
            slope, bend = (p - aim) * z, p * (1 - p) * z**2
        return float(slope.double().mean()), float(bend.double().mean())

    def _nll(self, logits: Tensor, target: Tensor) -> float:
        if kind_of(self.task) == "classes":
            return float(F.cross_entropy(logits, target, reduction="none").double().mean())
        known = ~target.isnan()
        value = F.binary_cross_entropy_with_logits(logits[known], target[known].to(logits.dtype), reduction="none")
        return float(value.double().mean())

    def apply(self, scores: Tensor) -> Tensor:
        """[N, C]; the very same tensor at T = 1."""
        return scores if self.log_t == 0 else self.task.scores(self.task.logits(scores) / self.value)

    def state(self) -> dict[str, Tensor]:
        """log T, as a named array."""
        return {"log_t": torch.tensor(self.log_t, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of another one."""
        self.log_t = float(state["log_t"])
