"""The labels themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sftc.types import Term, View


def by_label(view: View, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """`loss(target)`, one value per row; of a mixed row the mean over both labels by their shares.

    Mixed rows are those of mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019).
    """
    task, batch = view.task, view.batch
    own = loss(batch.target)
    if batch.partner is None:
        return own
    # Dividing by the mixed weight undoes the objective's own weighting, so both labels count by their class.
    lam = batch.partner.lam.view(-1, *[1] * (own.ndim - 1))
    a = lam * task.weight(batch.target)
    b = (1 - lam) * task.weight(batch.partner.target)
    other = loss(batch.partner.target)
    return (a * own + b * other) / (a + b).clamp_min(torch.finfo(own.dtype).tiny)


class Truth(Term):
    """The task's own loss against the labels; rows without one count nothing."""

    needs = frozenset({"target"})

    def forward(self, view: View) -> Tensor:
        return by_label(view, lambda target: view.task.loss(view.student.logits, target))
