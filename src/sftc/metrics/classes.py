"""Metrics of classes: torchmetrics where it has them, NLL and Brier (which it lacks) here; spans by seqeval."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.metrics.pieces import Pieces
from sftc.types import Metrics

RANKED = 32  # classes whose scores are ranked for auc without being asked


class ClassMeter(Pieces):
    """accuracy, top5 (C > 5), macro f1, auc, ece (15 bins), nll, brier, loss; per class: precision, recall, f1, rows.

    auc is the area under the ROC curve; of more than two classes the mean over each against all others that occurs. It
    keeps all scores: not for one answer per position, nor for more than RANKED classes unless it is the monitor.
    """

    dense = False

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
        if not self.dense and (c <= RANKED or self.task.monitor == "auc"):
            out["auc"] = _Area(c)
        if c > 5:
            out["top5"] = MulticlassAccuracy(average="micro", top_k=5, **plain)
        if self.full:
            out["_per_class"] = MulticlassStatScores(average=None, **plain)
        return out

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w * self.task.weight(target))
        if logits.ndim > 2:
            self.dense = True
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


class _Area:
    """Area under the ROC curve by torchmetrics, over the classes of which there are rows, and rows of others."""

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import BinaryAUROC, MulticlassAUROC

        self.two = classes == 2
        self.there = torch.zeros(classes, dtype=torch.bool)
        plain = {"validate_args": False}
        self.area = BinaryAUROC(**plain) if self.two else MulticlassAUROC(classes, average=None, **plain)

    def update(self, scores: Tensor, target: Tensor) -> None:
        self.there[target.unique()] = True
        self.area.update(scores[:, 1] if self.two else scores, target)

    def compute(self) -> Tensor:
        if self.there.sum() < 2:
            return torch.tensor(torch.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class without rows, which is left out here
            area = self.area.compute()
        return area if self.two else area[self.there].mean()


class TagMeter(ClassMeter):
    """F1 of whole spans, micro-averaged (seqeval), and what ClassMeter says of single words.

    Tags without a scheme, as parts of speech are, are spans of one word each.
    """

    dense = True

    def __init__(self, task: Any, full: bool) -> None:
        super().__init__(task, full)
        self.names = [n if n == "O" or n[1:2] == "-" else f"B-{n}" for n in task.classes]
        self.true: list[list[str]] = []
        self.said: list[list[str]] = []

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        """Dense logits [N, C, T]; or flat ones [P, C], of which those of one `row` [P] follow each other."""
        super().update(logits, target, weight)
        keep = self.weights(target, weight) > 0
        if logits.ndim > 2:
            row = torch.arange(len(target), device=target.device).unsqueeze(1).expand_as(target)
        row = torch.arange(len(target)) if row is None else row
        sizes = row[keep].unique_consecutive(return_counts=True)[1].tolist()
        for held, flat in ((self.true, target[keep]), (self.said, logits.argmax(1)[keep])):
            held += [[self.names[i] for i in part.tolist()] for part in flat.cpu().split(sizes)]

    def compute(self) -> Metrics:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no span at all, in what is true or said: its F1 is 0
            return {"span_f1": float(_seqeval()(self.true, self.said))} | super().compute()


def _seqeval() -> Any:
    try:
        from seqeval.metrics import f1_score
    except ImportError:
        raise Refused("span F1 of tags needs seqeval: pip install 'sftc[text]'") from None
    return f1_score
