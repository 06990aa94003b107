"""Metrics of labels and of values, by torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.metrics.pieces import Pieces
from sftc.types import Metrics


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
