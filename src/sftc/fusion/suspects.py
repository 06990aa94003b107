"""Labels that are likely wrong, by what models say that did not learn from them (Northcutt et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


class Suspects:
    """Rows whose label the models confidently contradict, the least believed label first.

    Attributes:
        row: [k] positions in what was asked about.
        label: [k] what they are labelled.
        likely: [k] what they are likely to be.
        given, other: [k] probabilities of the two.
    """

    __slots__ = ("given", "label", "likely", "other", "row")

    def __init__(self, row: Tensor, label: Tensor, likely: Tensor, scores: Tensor) -> None:
        self.row, self.label, self.likely = row, label, likely
        self.given = scores[row].gather(1, label[:, None])[:, 0]
        self.other = scores[row].gather(1, likely[:, None])[:, 0]

    def __len__(self) -> int:
        return len(self.row)


def suspects(scores: Tensor, target: Tensor) -> Suspects:
    """Confident learning: the off-diagonal rows of the confident joint.

    A class is believed of a row where its probability reaches the mean probability of that class over the rows that
    are labelled so; of several such classes, the most probable. Models that are too sure of one class, or rarely of
    another, thus need no common threshold.

    Args:
        scores: [n, C] probabilities by models that did not learn from the row.
        target: [n] labels; -1: none, and such a row is never suspected.
    """
    known = target >= 0
    safe = target.clamp_min(0)
    own = scores.gather(1, safe[:, None])[:, 0].double()
    count = torch.bincount(safe[known], minlength=scores.shape[1])
    total = torch.zeros(scores.shape[1], dtype=torch.float64).index_add_(0, safe[known], own[known])
    threshold = torch.where(count > 0, total / count.clamp_min(1), torch.inf)  # nobody is believed to be of no class
    believed = torch.where(scores >= threshold, scores, -1.0)
    probability, likely = believed.max(1)
    wrong = (known & (probability >= 0) & (likely != safe)).nonzero()[:, 0]
    wrong = wrong[own[wrong].argsort(stable=True)]
    return Suspects(wrong, target[wrong], likely[wrong], scores)
