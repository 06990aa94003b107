"""The kinds of problem: what a loss is, what a score is, what is counted. Dense targets use the same classes.

Shapes: N rows, C outputs, `*positions` empty for one answer per row. Unlabelled is a property of the target: -1 for
classes, NaN for labels and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import Refused, choose
from sftc.metrics import ClassMeter, LabelMeter, TagMeter, ValueMeter
from sftc.metrics_pixels import PixelMeter

MINIMIZED = frozenset({"loss", "nll", "brier", "ece", "mae", "rmse"})


class Classification:
    """One of C classes per row. Logits [N, C, *positions], target [N, *positions] (-1: unlabelled).

    Args:
        classes: their names, in the order of the logits.
        loss: cross_entropy; nll for models that end in LogSoftmax; focal (Lin et al. 2017); and where labels may be
            wrong, gce (generalised cross-entropy, Zhang & Sabuncu 2018) or bootstrap (Reed et al. 2015).
        smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        class_weight: [C], weighs rows by their class as `torch.nn.CrossEntropyLoss(weight=)` does.
        gamma: of the focal loss.
        q: of gce: 1 is the absolute error, which no wrong label can lead far; towards 0 it becomes cross-entropy.
        beta, hard: of bootstrap: what the label counts; the rest is the model's own class (hard) or probabilities.
    """

    kind = "classes"
    offers = frozenset({"classes", "probabilities"})
    losses = ("cross_entropy", "nll", "focal", "gce", "bootstrap")
    metrics = ("accuracy", "top5", "f1", "auc", "ece", "nll", "brier", "loss")

    def __init__(
        self,
        classes: Sequence[str],
        *,
        loss: str = "auto",
        smoothing: float = 0.0,
        gamma: float = 2.0,
        q: float = 0.7,
        beta: float = 0.8,
        hard: bool = True,
        class_weight: Tensor | None = None,
        monitor: str = "auto",
    ) -> None:
        self.q, self.beta, self.own_class = q, beta, hard
        self.classes = list(classes)
        self.out_dim = len(self.classes)
        self.loss_name = fitting_loss(loss, self.kind)
        self.smoothing = smoothing
        self.gamma = gamma
        self.class_weight = class_weight
        self.monitor, self.maximize = fitting_monitor(monitor, self.kind)
        if self.monitor == "top5" and self.out_dim <= 5:
            raise Refused(f"monitor=top5 needs more than 5 classes; there are {self.out_dim}: use monitor=accuracy")

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss_name == "cross_entropy":
            return F.cross_entropy(logits, target, reduction="none", ignore_index=-1, label_smoothing=self.smoothing)
        log_p = logits if self.loss_name == "nll" else F.log_softmax(logits, 1)
        true = -log_p.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        if self.loss_name == "focal":
            true = (1 - (-true).exp()).clamp_min(0) ** self.gamma * true
        elif self.loss_name == "gce":
            true = (1 - (-self.q * true).exp()) / self.q
        elif self.loss_name == "bootstrap":
            own = -log_p.amax(1) if self.own_class else -(log_p.exp() * log_p).sum(1)
            true = self.beta * true + (1 - self.beta) * own
        if self.smoothing:
            true = (1 - self.smoothing) * true - self.smoothing * log_p.mean(1)
        return torch.where(target >= 0, true, 0.0)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015), [N, *positions]."""
        student = F.log_softmax(logits / temperature, 1)
        teacher = F.log_softmax(teacher / temperature, 1)
        return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)

    def labelled(self, target: Tensor) -> Tensor:
        return target >= 0

    def weight(self, target: Tensor) -> Tensor:
        known = self.labelled(target)
        if self.class_weight is None:
            return known.float()
        if self.class_weight.device != target.device:
            self.class_weight = self.class_weight.to(target.device)
        return self.class_weight[target.clamp_min(0)] * known

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def logits(self, scores: Tensor) -> Tensor:
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()

    def hard(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(1), self.out_dim).movedim(-1, 1).to(scores.dtype)

    def miss(self, scores: Tensor, target: Tensor) -> Tensor:
        return (scores.argmax(1) != target).to(scores.dtype)

    def agreement(self, scores: Tensor, other: Tensor) -> Tensor:
        """1 where both say the same class, else 0: [N]."""
        return (scores.argmax(1) == other.argmax(1)).to(scores.dtype)

    def constant(self, target: Tensor) -> Tensor:
        """Logits [1, C] of the best answer that looks at no row: how often each class occurs in `target` [N]."""
        counts = torch.bincount(target.flatten(), minlength=self.out_dim).float()
        return self.logits((counts / counts.sum()).clamp_min(1e-6)[None])

    def flat(self, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if logits.ndim == 2:
            return self.scores(logits), target, index
        keep = target >= 0
        scores = self.scores(logits).movedim(1, -1)[keep]
        row = index.view(-1, *[1] * (target.ndim - 1)).expand_as(target)[keep]
        return scores, target[keep], row

    def meter(self, full: bool = True) -> ClassMeter:
        return ClassMeter(self, full)


class Tagging(Classification):
    """One of C tags for each word. Logits [N, C, T], target [N, T] (-1: unlabelled, or no word).

    What is best is judged by whole spans, of tags in the BIO scheme or its kin.
    """

    kind = "tags"
    metrics = ("span_f1", "accuracy", "f1", "ece", "nll", "brier", "loss")

    def __init__(self, classes: Sequence[str], **more: Any) -> None:
        super().__init__(classes, **more)
        if find_spec("seqeval") is None:  # now, not after the first epoch
            raise Refused("span F1 of tags needs seqeval: pip install 'sftc[text]'")

    def meter(self, full: bool = True) -> TagMeter:
        return TagMeter(self, full)


class Segmentation(Classification):
    """One of C classes for each pixel. Logits [N, C, H, W], target [N, H, W] (-1: unlabelled).

    What is best is judged by the mean over classes of intersection over union, which rare classes count in as common
    ones do.
    """

    kind = "pixels"
    offers = frozenset({"classes", "probabilities", "pixels"})
    metrics = ("miou", "accuracy", "nll", "loss")

    def meter(self, full: bool = True) -> PixelMeter:
        return PixelMeter(self, full)


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
        self.loss_name = fitting_loss(loss, "labels")
        self.gamma = gamma
        self.class_weight = class_weight  # [L], weighs the positives as `BCEWithLogitsLoss(pos_weight=)` does
        self.monitor, self.maximize = fitting_monitor(monitor, "labels")

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


class Regression:
    """K values per row. Models answer in standard units; scores, targets and metrics are in the data's own.

    Args:
        names: of the K values; with quantiles, of each value's quantiles one after another: the target stands once for
            each of them.
        mean, std: [K], of the training rows.
        loss: mse; mae; huber (`delta` in standard units); quantile (pinball; Koenker and Bassett 1978).
        quantiles: of each value, for loss=quantile: shares of the truth that lie below the answer.
    """

    offers = frozenset({"values"})
    losses = ("mse", "huber", "mae", "quantile")
    metrics = ("r2", "mae", "rmse", "loss")

    def __init__(
        self,
        names: Sequence[str],
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        loss: str = "auto",
        delta: float = 1.0,
        quantiles: Sequence[float] = (),
        monitor: str = "auto",
    ) -> None:
        self.classes = list(names)
        self.out_dim = len(self.classes)
        self.mean = torch.zeros(self.out_dim) if mean is None else mean.float()
        self.std = torch.ones(self.out_dim) if std is None else std.float()
        # A constant target has no spread to divide by.
        self.std = torch.where(self.std > 0, self.std, 1.0)
        self.loss_name = fitting_loss(loss, "values")
        self.delta = delta
        self.quantiles = list(quantiles)
        if self.quantiles and self.out_dim % len(self.quantiles):
            raise Refused(f"{self.out_dim} outputs are not {len(self.quantiles)} quantiles of each value")
        self.level = torch.tensor(self.quantiles * (self.out_dim // max(1, len(self.quantiles))))
        if monitor == "auto" and self.quantiles:
            monitor = "loss"  # r2 and the others look at the middle quantile alone
        self.monitor, self.maximize = fitting_monitor(monitor, "values")

    @property
    def middle(self) -> list[int]:
        """Which outputs stand for the values: all, or of each its quantile that is nearest to the median."""
        q = len(self.quantiles)
        if not q:
            return list(range(self.out_dim))
        at = min(range(q), key=lambda i: abs(self.quantiles[i] - 0.5))
        return list(range(at, self.out_dim, q))

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.mean.device != like.device:
            self.mean, self.std, self.level = (t.to(like.device) for t in (self.mean, self.std, self.level))
        return self.mean, self.std

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        mean, std = self._scale(logits)
        known = ~target.isnan()
        goal = torch.where(known, (target - mean) / std, 0.0)
        if self.loss_name == "huber":
            value = F.huber_loss(logits, goal, reduction="none", delta=self.delta)
        elif self.loss_name == "mae":
            value = (logits - goal).abs()
        elif self.loss_name == "quantile":
            short = goal - logits
            value = torch.maximum(self.level * short, (self.level - 1) * short)
        else:
            value = (logits - goal) ** 2
        return torch.where(known, value, 0.0).sum(1) / known.sum(1).clamp_min(1)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return ((logits - teacher) ** 2).mean(1)

    def labelled(self, target: Tensor) -> Tensor:
        return (~target.isnan()).any(1)

    def weight(self, target: Tensor) -> Tensor:
        return self.labelled(target).float()

    def scores(self, logits: Tensor) -> Tensor:
        mean, std = self._scale(logits)
        return logits * std + mean

    def logits(self, scores: Tensor) -> Tensor:
        mean, std = self._scale(scores)
        return (scores - mean) / std

    def hard(self, scores: Tensor) -> Tensor:
        raise Refused("values cannot be voted on; use fuse=mean or fuse=median")

    def miss(self, scores: Tensor, target: Tensor) -> Tensor:
        error = (scores - target).abs().mean(1)
        return error / error.max().clamp_min(torch.finfo(error.dtype).tiny)

    def agreement(self, scores: Tensor, other: Tensor) -> Tensor:
        """1 less the squared distance of both, in standard units of the target: [N]; its mean is like an R2."""
        return 1 - ((scores - other) / self._scale(scores)[1]).square().mean(1)

    def constant(self, target: Tensor) -> Tensor:
        """Standard units [1, K] of the best answer that looks at no row: mean or quantiles of `target` [N, K]."""
        if self.quantiles:
            best = [column.nanquantile(q) for column, q in zip(target.T, self.level.tolist(), strict=True)]
            return self.logits(torch.stack(best)[None])
        return self.logits(target.nanmean(0)[None])

    def flat(self, logits: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scores(logits), target, index

    def meter(self, full: bool = True) -> ValueMeter:
        return ValueMeter(self, full)


TASKS = {"classes": Classification, "labels": MultiLabel, "values": Regression, "tags": Tagging}
TASKS["pixels"] = Segmentation


def check_quantiles(quantiles: Sequence[float] | None) -> None:
    """Raises Refused: they do not rise from above 0 to below 1."""
    if quantiles is None:
        return
    numbers = all(isinstance(q, int | float) for q in quantiles)
    if not quantiles or not numbers or not all(a < b for a, b in itertools.pairwise([0, *quantiles, 1])):
        raise Refused(f"loss.quantiles={list(quantiles)} must rise between 0 and 1, such as [0.1,0.5,0.9]")


def fitting_loss(name: str, kind: str) -> str:
    """The loss of a kind of data; `auto` is its first. Raises Refused: it belongs to another kind."""
    options = TASKS[kind].losses
    if name != "auto" and name not in options:
        raise Refused(f"loss={name} does not fit data with {kind}; use loss={' or loss='.join(options)}")
    return options[0] if name == "auto" else name


def fitting_monitor(name: str, kind: str) -> tuple[str, bool]:
    """The monitor of a kind of data (`auto` is its first metric), and whether larger is better. Raises Refused."""
    options = TASKS[kind].metrics
    name = choose("monitor", options[0] if name == "auto" else name, options)
    return name, name not in MINIMIZED
