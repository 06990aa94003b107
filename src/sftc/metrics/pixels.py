"""Metrics of a class for every pixel: one table of counts, however many pixels pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.metrics.pieces import Pieces
from sftc.types import Metrics


class PixelMeter(Pieces):
    """miou, accuracy, nll, loss, from one table of C x C counts; per class: iou, precision, recall, pixels.

    A class that is neither true nor said anywhere has no IoU, and does not count in the mean.
    """

    def __init__(self, task: Any, full: bool) -> None:
        super().__init__(task, full)
        self.table = torch.zeros(task.out_dim, task.out_dim, dtype=torch.long)  # [true, said]

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        """Dense logits [N, C, H, W], or those of some pixels [P, C]."""
        w = self.weights(target, weight)
        loss = self.task.loss(logits, target)
        self.add("loss", loss, w * self.task.weight(target))
        plain = self.task.loss_name == "cross_entropy" and not self.task.smoothing
        nll = loss if plain else torch.nn.functional.cross_entropy(logits, target, reduction="none", ignore_index=-1)
        self.add("nll", nll, w)
        keep = w > 0
        pairs = target[keep] * self.task.out_dim + logits.argmax(1)[keep]
        self.table += torch.bincount(pairs, minlength=self.table.numel()).view_as(self.table).cpu()

    def compute(self) -> Metrics:
        """NaN where no pixel was labelled."""
        hits, union = self.table.diagonal().double(), self._union()
        total = int(self.table.sum())
        iou = (hits / union)[union > 0]
        return {
            "miou": float(iou.mean()),
            "accuracy": float(hits.sum()) / total if total else float("nan"),
            **self.means(),
        }

    def _union(self) -> Tensor:
        return (self.table.sum(0) + self.table.sum(1) - self.table.diagonal()).double()

    def per_class(self) -> dict[str, dict[str, float]]:
        """Name -> iou, precision, recall, pixels."""
        hits, true, said = self.table.diagonal().double(), self.table.sum(1), self.table.sum(0)
        columns = {"iou": hits / self._union(), "precision": hits / said, "recall": hits / true}
        numbers = {k: v.nan_to_num(0.0).tolist() for k, v in columns.items()}
        return {
            name: {**{k: v[i] for k, v in numbers.items()}, "pixels": int(true[i])}
            for i, name in enumerate(self.task.classes)
        }
