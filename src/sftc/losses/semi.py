"""Terms for rows without a label: what the student itself, or its own average, makes of them.

Each gives a value to unlabelled rows alone (Pseudo, Agreeing) or to all rows (Consistent), and asks for no teacher from
outside. `second` views are other pictures of the same rows: strongly augmented for FixMatch, as usual for mean teacher.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.losses.ramp import Weight
from sftc.types import Term, View


class Pseudo(Term):
    """Cross-entropy with the student's own most probable class, where it is sure (Lee 2013).

    Args:
        weight: Lee's alpha(t), see `climbing`.
        threshold: smallest probability that counts as sure.
    """

    needs = frozenset({"unlabelled", "classes"})

    def __init__(self, weight: Weight = 1.0, threshold: float = 0.95) -> None:
        super().__init__(weight)
        self.threshold = threshold

    def forward(self, view: View) -> Tensor:
        logits = view.student.logits
        return _sure(logits, logits, self.threshold)


class Agreeing(Term):
    """FixMatch: the class the student is sure of in one view is the label of the other, strong one (Sohn et al. 2020).

    Args:
        threshold: the paper's tau.
    """

    needs = frozenset({"unlabelled", "classes"})
    reads_second = True

    def __init__(self, weight: Weight = 1.0, threshold: float = 0.95) -> None:
        super().__init__(weight)
        self.threshold = threshold

    def forward(self, view: View) -> Tensor:
        assert view.second is not None
        return _sure(view.student.logits, view.second.logits, self.threshold)


class Consistent(Term):
    """Mean teacher: squared distance of the student's probabilities to those of its average (Tarvainen & Valpola 2017).

    Summed over classes; of values the mean over outputs, in standard units. On every row, labelled or not. The average
    sees the second view of a row, if there is one.
    """

    reads_average = True

    def forward(self, view: View) -> Tensor:
        assert view.average is not None
        if "values" in view.task.offers:
            return (view.student.logits - view.average.logits).square().mean(1)
        return (view.student.logits.softmax(1) - view.average.logits.softmax(1)).square().sum(1)


class Climb:
    """A weight that climbs from 0 to `top` within the first `share` of training, as exp(-5 (1 - t)^2).

    The ramp of Laine & Aila 2017, used by mean teacher and, in the form of a straight line, by pseudo-labels.
    """

    def __init__(self, top: float, share: float) -> None:
        self.top, self.share = top, share

    def __call__(self, progress: float) -> float:
        if progress >= self.share:
            return self.top
        return self.top * math.exp(-5 * (1 - progress / self.share) ** 2)


def _sure(said: Tensor, learns: Tensor, threshold: float) -> Tensor:
    """Cross-entropy [N, *positions] of `learns` with the class `said` is sure of; 0 where it is not."""
    probability, label = said.detach().softmax(1).max(1)
    return torch.where(probability >= threshold, F.cross_entropy(learns, label, reduction="none"), 0.0)
