"""Costs of the student itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftc.types import Penalty


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
