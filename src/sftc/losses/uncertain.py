"""Several tasks in one fit, each counting by how sure it can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftc.losses.truth import Truth
from sftc.types import Term, View


class Uncertain(Term):
    """exp(-s) * L + s / 2 of the task's own loss L, with s = log sigma^2 learned (Kendall et al. 2018); exp(-s) / 2 of
    values. What is noisy in the end counts less.
    """

    needs = frozenset({"target"})

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.truth = Truth()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, view: View) -> Tensor:
        half = 0.5 if "values" in view.task.offers else 1.0
        s = self.log_variance
        return half * torch.exp(-s) * self.truth(view) + s / 2
