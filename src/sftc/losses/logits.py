"""Terms that compare the student's answers with the teachers'.

Values are averaged over rows by the objective, and within a row as the paper does: a divergence is summed over classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sftc.errors import choose
from sftc.losses.ramp import Ramp, Weight, heat
from sftc.losses.reading import exact, real, unit
from sftc.losses.team import Team
from sftc.losses.truth import by_label
from sftc.types import Task, Term, View

FORMS = ("forward", "reverse", "js", "quantile")


class Soft(Term):
    """T^2 times the divergence from the teachers at temperature T (Hinton et al. 2015); of values the squared error.

    Args:
        form: forward KL(teacher || student), reverse KL(student || teacher), or js (Jensen-Shannon, at most T^2 log 2).
            quantile: of quantiles of values, the pinball loss that the student expects of the teachers' quantiles.
        temperature: above 0, or a Ramp.
        standardize: z-score the logits of each row before dividing by T (Sun et al. 2024), so that the student need not
            match their size. The teachers' after pooling. Classes only.
        team: how several teachers become one.

    Raises:
        Refused: no such form, or a temperature that is not above 0.
    """

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        form: str = "forward",
        temperature: float | Ramp = 4.0,
        standardize: bool = False,
        team: Team | None = None,
    ) -> None:
        super().__init__(weight)
        self.form = choose("form", form, FORMS)
        self.temperature = heat(temperature)
        self.standardize = standardize
        self.team = team or Team()
        if standardize:
            self.needs = frozenset({"classes"})
        if self.form == "quantile":
            self.needs |= {"quantiles"}

    def forward(self, view: View) -> Tensor:
        t, task = self.temperature(view.progress), view.task
        student = exact(view.student.logits)
        teacher, factor = self.team(view, t)
        if self.form == "quantile":
            values: Any = task
            return _count(values.pinball(student, teacher), factor)
        if self.standardize:
            student, teacher = _standard(student), _standard(teacher)
        if self.form == "forward" or "probabilities" not in task.offers:
            return _count(task.distance(student, teacher, t), factor)
        q, p = _log_probabilities(task, student / t), _log_probabilities(task, teacher / t)
        if self.form == "reverse":
            value = _kl(q, p)
        else:
            middle = torch.logaddexp(p, q) - math.log(2)
            value = (_kl(p, middle) + _kl(q, middle)) / 2
        return _count(t**2 * (value if "classes" in task.offers else value.mean(1)), factor)


class Decoupled(Term):
    """T^2 * (alpha * KL of "the true class or not" + beta * KL among the others), Zhao et al. 2022 (DKD).

    Rows without a label count nothing. Of a mixed row it is the mean over both labels by their shares, as of the truth.
    """

    needs = frozenset({"target", "classes"})

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | Ramp = 4.0,
        team: Team | None = None,
    ) -> None:
        super().__init__(weight)
        self.alpha, self.beta = alpha, beta
        self.temperature = heat(temperature)
        self.team = team or Team()

    def forward(self, view: View) -> Tensor:
        t = self.temperature(view.progress)
        student = exact(view.student.logits)
        teacher, factor = self.team(view, t)

        def value(target: Tensor) -> Tensor:
            q, q_others = _decouple(student / t, target)
            p, p_others = _decouple(teacher / t, target)
            return t**2 * (self.alpha * _kl(p, q) + self.beta * _kl(p_others, q_others))

        return _count(by_label(view, value), factor)


class Correlation(Term):
    """T^2 * (inter * (1 - correlation in a row) + intra * (1 - correlation in a class)) (Huang et al. 2022, DIST).

    Pearson's correlation of probabilities: in a row over its classes, and of a class over the rows (and positions) of
    the batch. Where one side is constant there is none: it counts as 0 and gives no gradient.
    """

    needs = frozenset({"probabilities"})
    couples_rows = True

    def __init__(
        self,
        weight: Weight = 1.0,
        *,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float | Ramp = 1.0,
        team: Team | None = None,
    ) -> None:
        super().__init__(weight)
        self.inter, self.intra = inter, intra
        self.temperature = heat(temperature)
        self.team = team or Team()

    def forward(self, view: View) -> Tensor:
        t = self.temperature(view.progress)
        student = exact(view.student.logits)
        teacher, factor = self.team(view, t)
        shape = student[:, 0].shape
        keep = real(view.batch, shape)
        keep = keep if factor is None else keep & (factor > 0)
        q, p = (_rows(view.task.scores(z / t), keep) for z in (student, teacher))
        rows = 1 - (_centred(q, 1) * _centred(p, 1)).sum(1)
        flags = keep.reshape(-1, 1)
        classes = 1 - (_centred(q, 0, flags) * _centred(p, 0, flags)).sum(0).mean()
        return _count(t**2 * (self.inter * rows + self.intra * classes).view(shape), factor)


class MeanSquared(Term):
    """Mean over outputs of (student's logit - teacher's logit)^2 (Ba & Caruana 2014, Kim et al. 2021).

    The mean, not the sum: it is then twice what `Soft` tends to as T grows, for logits of the same mean.

    Args:
        team: pools logits, whatever its space: log-probabilities have lost the level that this term compares.
    """

    def __init__(self, weight: Weight = 1.0, *, team: Team | None = None) -> None:
        super().__init__(weight)
        self.team = (team or Team()).on_logits()

    def forward(self, view: View) -> Tensor:
        teacher, factor = self.team(view, 1.0)
        return _count(((exact(view.student.logits) - teacher) ** 2).mean(1), factor)


def _count(values: Tensor, factor: Tensor | None) -> Tensor:
    return values if factor is None else torch.where(factor > 0, factor * values, 0.0)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities along dimension 1."""
    return (p.exp() * (p - q)).sum(1)


def _log_probabilities(task: Task, z: Tensor) -> Tensor:
    """[N, C, *positions]; of labels [N, 2, L]: yes and no."""
    if "classes" in task.offers:
        return F.log_softmax(z, 1)
    return torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], 1)


def _standard(z: Tensor) -> Tensor:
    """Z-scores along dimension 1, by the deviation over C as in the paper; eased, as a fresh head may say all zeros."""
    centred = z - z.mean(1, keepdim=True)
    return centred * ((centred * centred).mean(1, keepdim=True) + 1e-5).rsqrt()


def _decouple(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of [true, not true] as [N, 2, *positions], and among the others; there 0 at the true class."""
    true = torch.zeros_like(z, dtype=torch.bool).scatter(1, target.clamp_min(0).unsqueeze(1), True)
    log_p = F.log_softmax(z, 1)
    whether = torch.stack([log_p.masked_fill(~true, 0).sum(1), log_p.masked_fill(true, -torch.inf).logsumexp(1)], 1)
    others = F.log_softmax(z.masked_fill(true, -torch.inf), 1)
    return whether, others.masked_fill(true, 0)


def _rows(p: Tensor, keep: Tensor) -> Tensor:
    """[P, C]: probabilities of every position, zeros where it does not count."""
    return torch.where(keep.unsqueeze(1), p, 0.0).movedim(1, -1).reshape(-1, p.shape[1])


def _centred(p: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Less the mean along `dim` of what counts, at unit length; spreads below 1e-6 are rounding, not a direction."""
    if keep is None:
        return unit(p - p.mean(dim, keepdim=True), dim, least=1e-6)
    mean = p.sum(dim, keepdim=True) / keep.sum().clamp_min(1)
    return unit((p - mean) * keep, dim, least=1e-6)
