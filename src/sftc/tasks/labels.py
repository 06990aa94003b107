"""Any of several labels for each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.metrics import LabelMeter
from sftc.tasks.fitting import loss_of, monitor_of


class MultiLabel:
    """Any of L labels per row. Logits and target [N, L]; a target is 0, 1 or NaN (not known)."""

    offers = frozenset({"labels", "probabilities"})
    losses = ("bce", "focal")
    metrics = ("f1", "map", "accuracy", "nll", "brier", "loss")

    def __init__(
        self,
        labels: Sequence[str],
        *,
        loss: str = "auto",
        gamma: float = 2.0,
        class_weight: Tensor | None = None,
        monitor: str = "auto",
    ) -> None:
        self.classes = list(labels)
        self.out_dim = len(self.classes)
        self.loss_name = loss_of(type(self), "labels", loss)
        self.gamma = gamma
        self.class_weight = class_weight  # [L], weighs the positives as `BCEWithLogitsLoss(pos_weight=)` does
        self.monitor, self.maximize = monitor_of(type(self), monitor)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        clean = torch.where(known, target, 0.0)
        weight = None if self.class_weight is None else self.class_weight.to(logits.device)
        value = F.binary_cross_entropy_with_logits(logits, clean, reduction="none", pos_weight=weight)
        if self.loss_name == "focal":
            p = logits.sigmoid()
            value = value * (p * (1 - clean) + (1 - p) * clean) ** self.gamma
        return torch.where(known, value, 0.0).sum(1) / known.sum(1).clamp_min(1)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 * KL between the two Bernoulli distributions of each label, averaged over labels."""
        t = teacher / temperature
        p = t.sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits / temperature, p, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(t, p, reduction="none")
        return temperature**2 * (cross - entropy).mean(1)

    def labelled(self, target: Tensor) -> Tensor:
        return (~target.isnan()).any(1)

    def weight(self, target: Tensor) -> Tensor:
        return self.labelled(target).float()

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def logits(self, scores: Tensor) -> Tensor:
        return scores.logit(eps=1e-7)

    def hard(self, scores: Tensor) -> Tensor:
        return (scores >= 0.5).to(scores.dtype)

    def miss(self, scores: Tensor, target: Tensor) -> Tensor:
        return ((scores >= 0.5) != (target >= 0.5)).to(scores.dtype).mean(1)

    def agreement(self, scores: Tensor, other: Tensor) -> Tensor:
        """Share of the labels on which both say the same: [N]."""
        return 1 - self.miss(scores, other)

    def constant(self, target: Tensor) -> Tensor:
        """Logits [1, L] of the best answer that looks at no row: how often each label is set in `target` [N, L]."""
        return self.logits(target.nanmean(0)[None])

    def flat(self, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scores(logits), target, index

    def meter(self, full: bool = True) -> LabelMeter:
        return LabelMeter(self, full)
