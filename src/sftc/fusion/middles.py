"""Robust middles: what members in the middle say, whatever the outer ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.pooling import Pooling, given
from sftc.types import Task

BLOCK = 1 << 21  # numbers sorted at once


class Median(Pooling):
    """The median of each output; probabilities of classes are divided by their sum."""

    name = "median"

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return _middle(scores, lambda members: (members - 1) // 2, self.kind == "classes")


class Trimmed(Pooling):
    """The mean of each output without the lowest and highest `share` of members, rounded down, at each end.

    Args:
        share: in [0, 0.5).
    """

    name = "trimmed"

    def __init__(self, task: Task, share: float = 0.2) -> None:
        super().__init__(task)
        if not 0 <= share < 0.5:
            raise Refused(f"share={share} must be in [0, 0.5): it is cut off at both ends; use fuse=median for all")
        self.share = share

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return _middle(scores, lambda members: int(self.share * members), self.kind == "classes")


class WeightedMedian(Pooling):
    """The smallest answer that half of all weight lies at or below, for each value (AdaBoost.R2, Drucker 1997).

    Args:
        weights: one number per member.
    """

    name = "weighted_median"
    kinds = frozenset({"values"})
    instead = "fuse=weighted_vote"

    def __init__(self, task: Task, weights: Sequence[float] | None = None) -> None:
        super().__init__(task)
        numbers = given(self.name, "weights", weights)
        self.learnt = {"weights": numbers / numbers.sum()}

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        weights = self.fitting(self.part("weights"), scores)
        value, order = scores.sort(0)  # NaN comes last
        here = weights[order].masked_fill(value.isnan(), 0).cumsum(0)
        first = (here >= 0.5 * here[-1]).byte().argmax(0, keepdim=True)
        out = value.gather(0, first)[0]
        # Only members of weight 0 answered: the first number would be the least of them, not a middle.
        lost = (here[-1] == 0).any(1)
        if bool(lost.any()):
            out[lost] = _middle(scores[:, lost], lambda members: (members - 1) // 2, False)
        return out


def _middle(scores: Tensor, cut: Callable[[int], int], normalise: bool) -> Tensor:
    """The mean of the answers [N, C] without `cut(number of answers)` at each end."""
    members, rows, outputs = scores.shape
    out = scores.new_empty(rows, outputs)
    step = max(1, BLOCK // (members * outputs))
    for a in range(0, rows, step):
        # numpy sorts short rows several times faster than torch; NaN comes last there too.
        block = np.sort(scores[:, a : a + step].permute(1, 2, 0).contiguous().numpy(), axis=-1)
        count = members - np.isnan(block).any(1).sum(-1)
        here = np.full(block.shape[:2], np.nan)
        for k in np.unique(count[count > 0]).tolist():
            rows_k = count == k
            here[rows_k] = block[rows_k, :, cut(k) : k - cut(k)].mean(-1, dtype=np.float64)
        out[a : a + step] = torch.from_numpy(here).to(scores.dtype)
    return out / out.sum(1, keepdim=True) if normalise else out
