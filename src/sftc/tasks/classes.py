"""One of several classes for each row, word or pixel."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import Refused
from sftc.metrics import ClassMeter, PixelMeter, TagMeter
from sftc.tasks.fitting import loss_of, monitor_of


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
        self.loss_name = loss_of(type(self), self.kind, loss)
        self.smoothing = smoothing
        self.gamma = gamma
        self.class_weight = class_weight
        self.monitor, self.maximize = monitor_of(type(self), monitor)
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
