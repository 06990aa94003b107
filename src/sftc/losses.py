"""Loss terms, one small class each, and penalties on the student itself.

To add a term: subclass `Term`, return one value per row, and add a row to the table in the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftc.types import Penalty, Term, View


class Truth(Term):
    """The task's own loss against the labels; rows without one count nothing.

    Of a mixed row (mixup: Zhang et al. 2018, cutmix: Yun et al. 2019) it is the mean of both losses by their shares.
    """

    needs = frozenset({"target"})

    def forward(self, view: View) -> Tensor:
        task, logits, batch = view.task, view.student.logits, view.batch
        own = task.loss(logits, batch.target)
        if batch.partner is None:
            return own
        # Dividing by the mixed weight undoes the objective's own weighting, so both labels count by their class.
        lam = batch.partner.lam.view(-1, *[1] * (own.ndim - 1))
        a = lam * task.weight(batch.target)
        b = (1 - lam) * task.weight(batch.partner.target)
        other = task.loss(logits, batch.partner.target)
        return (a * own + b * other) / (a + b).clamp_min(torch.finfo(own.dtype).tiny)


class L1(Penalty):
    """scale * sum |w| over weights; norms and biases are left alone."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, student: nn.Module) -> Tensor:
        weights = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
        total = torch.stack([p.abs().sum() for p in weights]).sum() if weights else torch.zeros(())
        return self.scale * total


class L2SP(Penalty):
    """scale / 2 * ||w - w0||^2 towards the weights fine-tuning started from (Li et al. 2018).

    Args:
        start: parameter name -> value at the start. Parameters that are not in it (a new head) are pulled to zero. Kept
            as buffers, so that a resumed fit has them without the file they came from.
    """

    def __init__(self, scale: float, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.scale = scale
        for name, value in start.items():
            self.register_buffer(_flat(name), value.detach().clone())

    def forward(self, student: nn.Module) -> Tensor:
        starts = dict(self.named_buffers())
        parts = []
        for name, p in student.named_parameters():
            if p.requires_grad and p.ndim > 1:
                origin = starts.get(_flat(name))
                parts.append(((p if origin is None else p - origin) ** 2).sum())
        total = torch.stack(parts).sum() if parts else torch.zeros(())
        return self.scale / 2 * total


def _flat(name: str) -> str:
    return name.replace(".", "/")  # a buffer's name holds no dot
