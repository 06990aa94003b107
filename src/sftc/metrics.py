"""Metrics of a stream of batches: torchmetrics where it has them, NLL and Brier (which it lacks) here.

Meters gather flat scores and hand them on in large pieces: torchmetrics costs a millisecond a call, and dense logits
must not pile up.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.types import Metrics

PIECE = 1 << 16  # scored positions handed to torchmetrics at once
RANKED = 32  # classes whose scores are ranked for auc without being asked


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


class LabelMeter(Pieces):
    """macro f1, map (mean average precision), accuracy per label, nll, brier, loss."""

    def make(self) -> dict[str, Any]:
        from torchmetrics.classification import MultilabelAccuracy, MultilabelAveragePrecision, MultilabelF1Score

        plain = {"num_labels": self.task.out_dim, "validate_args": False}
        return {
            "accuracy": MultilabelAccuracy(average="micro", **plain),
            "f1": MultilabelF1Score(average="macro", **plain),
            "map": MultilabelAveragePrecision(**plain),
        }

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
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


class ValueMeter(Pieces):
    """r2 (mean over outputs), mae, rmse in the data's own units; loss in standard ones; per output: r2, mae, rmse.

    Of quantiles the middle ones are compared with the truth so, and `coverage` is the share of the truth that lies
    between the lowest and the highest; per output, the share that lies below it.
    """

    def make(self) -> dict[str, Any]:
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

        # float64: r2 subtracts two large sums where targets lie far from zero.
        out: dict[str, Any] = {
            "r2": R2Score(),
            "mae": MeanAbsoluteError(),
            "rmse": MeanSquaredError(squared=False),
        }
        if self.full:
            k = len(self.task.middle)
            out["_r2"] = R2Score(multioutput="raw_values")
            out["_mae"] = MeanAbsoluteError(num_outputs=k)
            out["_rmse"] = MeanSquaredError(squared=False, num_outputs=k)
        return {name: module.set_dtype(torch.float64) for name, module in out.items()}

    def update(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, row: Tensor | None = None) -> None:
        w = self.weights(target, weight)
        self.add("loss", self.task.loss(logits, target), w)
        keep = (w > 0) & ~target.isnan().any(1)
        self.seen += int(keep.sum())
        scores, true = self.task.scores(logits)[keep].double(), target[keep].double()
        middle = self.task.middle
        self.hold(scores[:, middle], true[:, middle])
        if count := len(self.task.quantiles):
            low, high = scores[:, ::count], scores[:, count - 1 :: count]
            inside = (low <= true[:, ::count]) & (true[:, ::count] <= high)
            if count > 1:
                self.add("coverage", inside.double().mean(1), torch.ones_like(inside[:, 0]))
            for i, name in enumerate(self.task.classes):
                self.add(f"_{name}", (true[:, i] <= scores[:, i]).double(), torch.ones_like(true[:, i]))

    def means(self) -> Metrics:
        return {k: v for k, v in super().means().items() if not k.startswith("_")}

    def compute(self) -> Metrics:
        self.flush()
        assert self.modules is not None
        if self.seen < 2:
            self.modules.pop("r2", None)  # torchmetrics refuses r2 of one row
            return {"r2": float("nan")} | super().compute()
        return super().compute()

    def per_class(self) -> dict[str, dict[str, float]]:
        """Name -> r2, mae, rmse of each of several outputs, or coverage of each quantile. Needs a full meter."""
        self.flush()
        assert self.modules is not None
        if self.task.quantiles:
            every = super().means()
            return {name: {"coverage": every[f"_{name}"]} for name in self.task.classes if f"_{name}" in every}
        if self.seen < 2 or self.task.out_dim < 2:
            return {}
        columns = {m: self.modules[f"_{m}"].compute().flatten().tolist() for m in ("r2", "mae", "rmse")}
        return {name: {m: v[i] for m, v in columns.items()} for i, name in enumerate(self.task.classes)}


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
