"""Metrics of a stream of batches: torchmetrics where it has them, NLL and Brier (which it lacks) here.

Meters gather flat scores and hand them on in large pieces: torchmetrics costs a millisecond a call, and dense logits
must not pile up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.types import Metrics

PIECE = 1 << 16  # scored positions handed to torchmetrics at once


class _Pieces:
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
        return known if weight is None else known * weight.reshape(-1, *[1] * (known.ndim - weight.ndim))


class ClassMeter(_Pieces):
    """accuracy, top5 (C > 5), macro f1, ece (15 bins), nll, brier, loss; per class: precision, recall, f1, rows."""

    def make(self) -> dict[str, Any]:
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassF1Score,
            MulticlassStatScores,
        )

        c = self.task.out_dim
        plain = {"num_classes": c, "validate_args": False}
        out: dict[str, Any] = {
            "accuracy": MulticlassAccuracy(average="micro", **plain),
            "f1": MulticlassF1Score(average="macro", **plain),
            "ece": MulticlassCalibrationError(n_bins=15, norm="l1", **plain),
        }
        if c > 5:
            out["top5"] = MulticlassAccuracy(average="micro", top_k=5, **plain)
        if self.full:
            out["_per_class"] = MulticlassStatScores(average=None, **plain)
        return out

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w * self.task.weight(target))
        if logits.ndim > 2:
            logits, target, w = logits.movedim(1, -1).flatten(0, -2), target.flatten(), w.flatten()
        scores = self.task.scores(logits)
        log_p = torch.log_softmax(logits.double(), 1)
        safe = target.clamp_min(0)
        self.add("nll", -log_p.gather(1, safe[:, None])[:, 0], w)
        # Brier (1950), summed over classes: 0 is perfect, 2 the worst.
        true = torch.nn.functional.one_hot(safe, self.task.out_dim)
        self.add("brier", ((scores - true) ** 2).sum(1), w)
        keep = w > 0
        self.hold(scores[keep], target[keep])

    def per_class(self) -> dict[str, dict[str, float]]:
        """Name -> precision, recall, f1, rows. Needs a full meter."""
        self.flush()
        assert self.modules is not None
        table = self.modules["_per_class"].compute().double()
        tp, fp, _, fn, support = table.unbind(-1)
        out = {}
        for i, name in enumerate(self.task.classes):
            precision = tp[i] / (tp[i] + fp[i]) if tp[i] + fp[i] else torch.tensor(0.0)
            recall = tp[i] / support[i] if support[i] else torch.tensor(0.0)
            f1 = 2 * tp[i] / (2 * tp[i] + fp[i] + fn[i]) if 2 * tp[i] + fp[i] + fn[i] else torch.tensor(0.0)
            out[name] = {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "rows": int(support[i]),
            }
        return out


class LabelMeter(_Pieces):
    """macro f1, map (mean average precision), accuracy per label, nll, brier, loss."""

    def make(self) -> dict[str, Any]:
        from torchmetrics.classification import MultilabelAccuracy, MultilabelAveragePrecision, MultilabelF1Score

        plain = {"num_labels": self.task.out_dim, "validate_args": False}
        return {
            "accuracy": MultilabelAccuracy(average="micro", **plain),
            "f1": MultilabelF1Score(average="macro", **plain),
            "map": MultilabelAveragePrecision(**plain),
        }

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w)
        keep = (w > 0) & ~target.isnan().any(1)
        scores, clean = self.task.scores(logits)[keep], target[keep]
        one = torch.ones_like(w[keep])
        nll = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[keep].double(), clean.double(), reduction="none"
        )
        self.add("nll", nll.mean(1), one)
        self.add("brier", ((scores - clean) ** 2).mean(1), one)
        self.hold(scores, clean.long())

    def per_class(self) -> dict[str, dict[str, float]]:
        return {}


class ValueMeter(_Pieces):
    """r2 (mean over outputs), mae, rmse in the data's own units; loss in standard ones."""

    def make(self) -> dict[str, Any]:
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

        # float64: r2 subtracts two large sums where targets lie far from zero.
        return {
            "r2": R2Score().set_dtype(torch.float64),
            "mae": MeanAbsoluteError().set_dtype(torch.float64),
            "rmse": MeanSquaredError(squared=False).set_dtype(torch.float64),
        }

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w)
        keep = (w > 0) & ~target.isnan().any(1)
        self.seen += int(keep.sum())
        self.hold(self.task.scores(logits)[keep].double(), target[keep].double())

    def compute(self) -> Metrics:
        self.flush()
        assert self.modules is not None
        if self.seen < 2:
            self.modules.pop("r2", None)  # torchmetrics refuses r2 of one row
            return {"r2": float("nan")} | super().compute()
        return super().compute()

    def per_class(self) -> dict[str, dict[str, float]]:
        return {}


class Agreement:
    """A meter that also says how far the model agrees with somebody else, batch by batch in the same order of rows.

    Args:
        meter: what is measured anyway.
        task: says what agreeing is: `agreement(scores, other)` -> [N].
        other: [n, C] the other's scores of all rows of the split.
    """

    def __init__(self, meter: Any, task: Any, other: Tensor) -> None:
        self.meter = meter
        self.task = task
        self.other = other
        self.at = 0
        self.agreed: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        self.meter.update(logits, target, weight)
        other = self.other[self.at : self.at + len(logits)].to(logits.device)
        self.at += len(logits)
        agreed = self.task.agreement(self.task.scores(logits), other).double()
        self.agreed.append(agreed if weight is None else agreed[weight > 0])

    def compute(self) -> Metrics:
        return {**self.meter.compute(), "agreement": float(torch.cat(self.agreed).mean())}
