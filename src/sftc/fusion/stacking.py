"""Rules with a head: on the members' scores (stacking), or on their tapped features alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion import classwise, heads
from sftc.fusion.pooling import Pooling, absent, pool
from sftc.fusion.targets import labelled
from sftc.types import Task

SURE = 1e-7  # log-probabilities end here: what is less likely says no more


class Stacking(Pooling):
    """A head on log-probabilities (of labels logits, of values themselves) of all members, and on features beside them.

    The scores it is fitted on must be held out from the members, or it learns whom to believe from rows they know.
    A gap is filled with the mean of who answered, in a feature with its mean over the rows of the fit.

    Args:
        model: logistic (probabilities), ridge (values), mlp (32 hidden units); auto is the first that fits.
        alpha: strength of the squared penalty on standardised columns; null: by inner cross-validation.
        columns: above so many columns of scores, logistic becomes a weight per member and class: `classwise`.
    """

    name = "stacking"
    needs_fit = True

    def __init__(self, task: Task, model: str = "auto", alpha: float | None = None, columns: int = 500) -> None:
        super().__init__(task)
        self.model = heads.fitting_model(self.name, task, model)
        self.alpha = _positive(alpha)
        self.columns = columns

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        if not self._classwise(scores):
            rows = labelled(target) & ~torch.stack([absent(m) for m in scores]).all(0)
            centers = _centers(features, rows)
            x = torch.cat([self._columns(scores[:, rows]), *_filled([f[rows] for f in features], centers)], 1)
            self.learnt = centers | heads.fit(self.task, self.model, x, target[rows], self.alpha)
        elif features:
            raise Refused(
                f"fuse=stacking weighs {len(scores)} members class by class above {self.columns} columns, where "
                "features have no place; use model=mlp, or fuse=features"
            )
        else:
            self.learnt = classwise.fit(self.task, scores, target, self.alpha)

    def fit_folds(self, scores: Tensor, target: Tensor, fold: Tensor, features: Sequence[Tensor] = ()) -> list[Self]:
        parts = self._copies(fold)
        if features or not self._classwise(scores) or len(parts) < classwise.FEWEST:
            return super().fit_folds(scores, target, fold, features)
        self.learnt, *states = classwise.fit_folds(self.task, scores, target, fold, self.alpha)
        for part, state in zip(parts, states, strict=True):
            part.learnt = state
        return parts

    def _classwise(self, scores: Tensor) -> bool:
        return self.model == "logistic" and len(scores) * scores.shape[2] > self.columns

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        if "deviation" in self.learnt:
            self.fitting(self.part("deviation"), scores)
            return classwise.apply(self.task, self.learnt, scores).to(scores.dtype)
        _expect(self.name, self.part("w0"), len(scores) * scores.shape[2], features)
        out = [
            heads.answer(
                self.task,
                self.learnt,
                torch.cat([self._columns(scores[:, a : a + heads.STEP]), *_filled(_cut(features, a), self.learnt)], 1),
            )
            for a in range(0, scores.shape[1], heads.STEP)
        ]
        return (torch.cat(out) if out else scores[0]).to(scores.dtype)

    def _columns(self, scores: Tensor) -> Tensor:
        """[n, M * C], gaps filled; NaN where nobody answered."""
        if self.kind == "classes":
            scores = scores.clamp_min(SURE).log()
        elif self.kind == "labels":
            scores = scores.logit(SURE)
        gaps = torch.stack([absent(member) for member in scores])
        if bool(gaps.any()):
            scores = torch.where(gaps[:, :, None], pool(scores).to(scores.dtype), scores)
        return scores.movedim(0, 1).flatten(1)


class Features(Pooling):
    """A head on the features of all members, side by side; their scores are not looked at.

    Args:
        model, alpha: as of stacking.
    """

    name = "features"
    needs_fit = True

    def __init__(self, task: Task, model: str = "auto", alpha: float | None = None) -> None:
        super().__init__(task)
        self.model = heads.fitting_model(self.name, task, model)
        self.alpha = _positive(alpha)

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        if not features:
            raise Refused("fuse=features needs tapped features of the members; name a tap, or use fuse=stacking")
        rows = labelled(target) & ~_nobody(features)
        centers = _centers(features, rows)
        x = torch.cat(_filled([f[rows] for f in features], centers), 1)
        self.learnt = centers | heads.fit(self.task, self.model, x, target[rows], self.alpha)

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        _expect(self.name, self.part("w0"), 0, features)
        out = heads.answer(self.task, self.learnt, torch.cat(_filled(features, self.learnt), 1))
        return out.masked_fill(_nobody(features)[:, None], torch.nan).to(scores.dtype)


def _positive(alpha: float | None) -> float | None:
    if alpha is not None and not alpha > 0:
        raise Refused(f"alpha={alpha} must be above 0, or null to choose it by inner cross-validation")
    return alpha


def _expect(rule: str, w: Tensor, columns: int, features: Sequence[Tensor]) -> None:
    columns += sum(f.shape[1] for f in features)
    if w.shape[1] != columns:
        raise Refused(
            f"fuse={rule} was fitted on {w.shape[1]} columns, and {columns} came: give it the same members and taps"
        )


def _nobody(features: Sequence[Tensor]) -> Tensor:
    """[N]: rows without any feature."""
    return torch.stack([absent(f) for f in features]).all(0)


def _centers(features: Sequence[Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {f"center{i}": f[rows].double().nanmean(0).nan_to_num(0.0) for i, f in enumerate(features)}


def _filled(features: Sequence[Tensor], centers: dict[str, Tensor]) -> list[Tensor]:
    return [torch.where(f.isnan(), centers[f"center{i}"].to(f.dtype), f) for i, f in enumerate(features)]


def _cut(features: Sequence[Tensor], start: int) -> list[Tensor]:
    return [f[start : start + heads.STEP] for f in features]
