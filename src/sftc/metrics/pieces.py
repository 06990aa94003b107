"""Scores and targets gathered into large pieces: torchmetrics costs a millisecond a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.types import Metrics

PIECE = 1 << 16  # scored positions handed to torchmetrics at once


class Pieces:
    """Scores and targets up to PIECE positions, and running sums of what averages over positions."""

    def __init__(self, task: Any, full: bool) -> None:
        self.task = task
        self.full = full
        self.scores: list[Tensor] = []
        self.target: list[Tensor] = []
        self.held = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.modules: dict[str, Any] | None = None
        self.seen = 0  # rows held so far

    def add(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Add to the weighted mean `name`; sums are float64, so the order of batches does not show."""
        total = (value.double() * weight.double()).sum()
        count = weight.double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def hold(self, scores: Tensor, target: Tensor) -> None:
        self.scores.append(scores)
        self.target.append(target)
        self.held += scores.shape[0]
        if self.held >= PIECE:
            self.flush()

    def flush(self) -> None:
        if self.modules is None:
            self.modules = self.make()
        if self.held:
            scores, target = torch.cat(self.scores).cpu(), torch.cat(self.target).cpu()
            self.scores, self.target, self.held = [], [], 0
            for module in self.modules.values():
                module.update(scores, target)

    def make(self) -> dict[str, Any]:
        return {}

    def means(self) -> Metrics:
        return {k: float(v / self.counts[k]) if float(self.counts[k]) else float("nan") for k, v in self.sums.items()}

    def compute(self) -> Metrics:
        self.flush()
        out = self.means()
        if self.modules and any(float(c) for c in self.counts.values()):
            out |= {k: float(m.compute()) for k, m in self.modules.items() if not k.startswith("_")}
        return out

    def weights(self, target: Tensor, weight: Tensor | None) -> Tensor:
        known = self.task.labelled(target).float()
        return known if weight is None else known * weight.reshape(*weight.shape, *[1] * (known.ndim - weight.ndim))
