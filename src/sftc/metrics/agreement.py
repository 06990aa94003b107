"""How far a model agrees with somebody else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.types import Metrics


class Agreement:
    """A meter that also says how far the model agrees with somebody else, batch by batch in the same order of rows.

    Args:
        meter: what is measured anyway.
        task: says what agreeing is: `agreement(scores, other)` -> [N].
        other: [P, C] the other's scores of all scored positions of the split, as predictions hold them.
    """

    def __init__(self, meter: Any, task: Any, other: Tensor) -> None:
        self.meter = meter
        self.task = task
        self.other = other
        self.at = 0
        self.agreed: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        self.meter.update(logits, target, weight, row)
        scores = self.task.flat(logits, target, torch.arange(len(logits), device=logits.device))[0]
        other = self.other[self.at : self.at + len(scores)].to(logits.device)
        self.at += len(scores)
        agreed = self.task.agreement(scores, other).double()
        self.agreed.append(agreed if weight is None or weight.ndim > 1 else agreed[weight > 0])

    def compute(self) -> Metrics:
        return {**self.meter.compute(), "agreement": float(torch.cat(self.agreed).mean())}
