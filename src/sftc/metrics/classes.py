"""Metrics of classes, counted as batches pass; the area under the ROC curve by torchmetrics, spans by seqeval."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.metrics.pieces import Pieces
from sftc.types import Metrics

BINS = 15  # of confidence, equally wide
RANKED = 32  # classes whose scores are ranked for auc without being asked


class ClassMeter(Pieces):
    """accuracy, top5 (C > 5), macro f1, auc, ece (15 bins), nll, brier, loss; per class: precision, recall, f1, rows.

    auc is the area under the ROC curve; of more than two classes the mean over each against all others that occurs. It
    keeps all scores: not for one answer per position, nor for more than RANKED classes unless it is the monitor.
    """

    dense = False

    def __init__(self, task: Any, full: bool) -> None:
        super().__init__(task, full)
        self.table: Tensor | None = None  # [3, C]: how often a class was rightly said, said, and true
        self.bins: Tensor | None = (
            None  # [BINS + 1] confidence less hits, summed; the last: of those that are 1 exactly
        )

    def make(self) -> dict[str, Any]:
        return {"auc": _Area(self.task.out_dim)} if self._ranked() else {}

    def _ranked(self) -> bool:
        return not self.dense and (self.task.out_dim <= RANKED or self.task.monitor == "auc")

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w * self.task.weight(target))
        if logits.ndim > 2:
            self.dense = True
            logits, target, w = logits.movedim(1, -1).flatten(0, -2), target.flatten(), w.flatten()
        scores = self.task.scores(logits)
        safe = target.clamp_min(0)
        own = safe[:, None]
        fine = logits if logits.dtype == torch.float64 else logits.float()
        self.add("nll", -fine.log_softmax(1).gather(1, own)[:, 0], w)
        # Brier (1950), summed over classes: 0 is perfect, 2 the worst.
        missed = scores.scatter_add(1, own, scores.new_full((1, 1), -1.0).expand(len(own), 1))
        self.add("brier", missed.square_().sum(1), w)
        if self.task.out_dim > 5:
            self.add("top5", _rank(scores, safe) < 5, w)
        keep = w > 0
        scores, target = scores[keep], target[keep]
        self._count(scores, target)
        if self._ranked():
            self.hold(scores, target)

    def _count(self, scores: Tensor, target: Tensor) -> None:
        """Here and not by torchmetrics, whose import takes longer than many a run."""
        said = scores.argmax(1)
        sure, right = scores.gather(1, said[:, None])[:, 0], said == target
        table = torch.stack([x.bincount(minlength=self.task.out_dim) for x in (target[right], said, target)])
        edges = torch.linspace(0, 1, BINS + 1, device=sure.device)
        place = torch.bucketize(sure.float(), edges, right=True) - 1
        bins = place.bincount(sure.double() - right.double(), minlength=BINS + 1)
        self.table = table if self.table is None else self.table + table
        self.bins = bins if self.bins is None else self.bins + bins

    def compute(self) -> Metrics:
        out = super().compute()
        if self.table is not None and self.bins is not None and (rows := int(self.table[2].sum())):
            hits, said, true = self.table.double()
            there = said + true > 0  # a class that is neither true nor said does not count, as in scikit-learn
            out["accuracy"] = float(hits.sum() / rows)
            out["f1"] = float((2 * hits / (said + true))[there].mean())
            out["ece"] = float(self.bins.abs().sum() / rows)
        return out

    def per_class(self) -> dict[str, dict[str, float]]:
        """Name -> precision, recall, f1, rows."""
        hits, said, true = torch.zeros(3, self.task.out_dim) if self.table is None else self.table.double().cpu()
        columns = {"precision": hits / said, "recall": hits / true, "f1": 2 * hits / (said + true)}
        numbers = {k: v.nan_to_num(0.0).tolist() for k, v in columns.items()}
        return {
            name: {**{k: v[i] for k, v in numbers.items()}, "rows": int(true[i])}
            for i, name in enumerate(self.task.classes)
        }


def _rank(scores: Tensor, target: Tensor) -> Tensor:
    """[N]: how many classes of [N, C] stand before the target; of equal ones those with lower numbers."""
    own = scores.gather(1, target[:, None])
    rank, level = (scores > own).sum(1), scores == own
    if int(level.sum()) > len(scores):  # not only the target itself
        lower = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
        rank += (level & lower).sum(1)
    return rank


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
