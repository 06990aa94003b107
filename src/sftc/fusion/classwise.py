"""Stacking with one weight per member and class: a class is judged by what members say of it alone.

StackingC (Seewald 2002): for each class a ridge regression of its indicator on the members' probabilities of it,
here shrunk towards the plain mean. Full width would be (M*C)^2 numbers to solve for; this is C small systems, and the
inner cross-validation of the penalty needs only their matrices, fold by fold.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.folds import assign
from sftc.fusion.pooling import absent, pool
from sftc.fusion.targets import kind_of, labelled
from sftc.types import Task

ALPHAS = (1e4, 1e3, 1e2, 1e1, 1.0)
INNER = 5
BLOCK = 1 << 23  # numbers of a temporary
FEWEST = 3  # folds of which the others can be the inner ones
LEAST = 0.01  # no answer falls below this share of the plain mean: a line can cross 0, and a log cannot follow

Products = tuple[Tensor, Tensor, Tensor]  # of K folds: X'X [K, C, M + 1, M + 1], X'r [K, C, M + 1], r'r [K, C]


def fit(task: Task, scores: Tensor, target: Tensor, alpha: float | None = None) -> dict[str, Tensor]:
    """`deviation` [M, C] from a weight of 1/M, and `bias` [C], from probabilities [M, N, C] and targets.

    Raises:
        Refused: fewer labelled and answered rows than folds of the inner cross-validation.
    """
    rows = _known(scores, target)
    _expect(len(rows))
    return _state(_products(task, scores, target, rows, assign(task, target[rows], INNER), INNER), alpha)


def fit_folds(
    task: Task, scores: Tensor, target: Tensor, fold: Tensor, alpha: float | None = None
) -> list[dict[str, Tensor]]:
    """Fitted on all rows, then without the rows of each fold; for each of these the other folds are the inner ones, so
    that one pass over the scores serves all.

    Raises:
        Refused: as of `fit`.
    """
    count = int(fold.max()) + 1
    rows = _known(scores, target)
    _expect(len(rows) - int(fold[rows].bincount(minlength=count).max()))
    gram, cross, square = _products(task, scores, target, rows, fold[rows], count)
    out = [_state((gram, cross, square), alpha)]
    for k in range(count):
        others = torch.arange(count) != k
        out.append(_state((gram[others], cross[others], square[others]), alpha))
    return out


def _known(scores: Tensor, target: Tensor) -> Tensor:
    """Numbers of the rows that are labelled and answered."""
    return (labelled(target) & ~torch.stack([absent(m) for m in scores]).all(0)).nonzero()[:, 0]


def _expect(rows: int) -> None:
    if rows < INNER:
        raise Refused(f"fuse=stacking needs {INNER} labelled rows or more and has {rows}; use fuse=mean")


def _state(products: Products, alpha: float | None) -> dict[str, Tensor]:
    gram, cross, _ = products
    weights = _solve(gram.sum(0), cross.sum(0), _alpha(products) if alpha is None else alpha)  # [C, M + 1]
    return {"deviation": weights[:, :-1].T.contiguous(), "bias": weights[:, -1].contiguous()}


def apply(task: Task, state: dict[str, Tensor], scores: Tensor) -> Tensor:
    """[N, C] float64."""
    mean = pool(scores)
    out = mean + state["bias"]
    for member, deviation in zip(scores, state["deviation"], strict=True):
        gap = absent(member)[:, None]
        out.addcmul_(torch.where(gap, mean, member) if bool(gap.any()) else member.double(), deviation)
    out = torch.maximum(out, LEAST * mean)
    if kind_of(task) == "classes":
        return out / out.sum(1, keepdim=True)
    return torch.minimum(out, 1 - LEAST * (1 - mean))


def _products(task: Task, scores: Tensor, target: Tensor, rows: Tensor, fold: Tensor, folds: int) -> Products:
    """Of the regression of truth - mean on members and 1, over `rows` [n], by the fold [n] of each."""
    rows = rows[fold.argsort(stable=True)]
    ends = fold.bincount(minlength=folds).cumsum(0).tolist()
    members, _, outputs = scores.shape
    gram = torch.empty(len(ends), outputs, members + 1, members + 1, dtype=torch.float64)
    cross, square = torch.empty_like(gram[..., 0]), torch.empty_like(gram[..., 0, 0])
    step = max(1, BLOCK // (len(rows) * (members + 1)))
    for c in range(0, outputs, step):
        x = torch.ones(min(step, outputs - c), members + 1, len(rows), dtype=scores.dtype)
        for m, member in enumerate(scores):
            x[:, m] = member[:, c : c + step].index_select(0, rows).T
        mean = x[:, :-1].mean(1)
        if bool(mean.isnan().any()):
            mean = x[:, :-1].nanmean(1)
            x[:, :-1] = torch.where(x[:, :-1].isnan(), mean[:, None], x[:, :-1])
        if kind_of(task) == "classes":
            goal = target[rows] == torch.arange(c, c + len(x))[:, None]
        else:
            goal = target[rows, c : c + step].T
        rest = goal.to(x.dtype) - mean  # [c, n]
        unknown = rest.isnan()
        if bool(unknown.any()):
            x, rest = x.masked_fill(unknown[:, None], 0), rest.masked_fill(unknown, 0)
        for k, (a, b) in enumerate(itertools.pairwise([0, *ends])):
            some = x[:, :, a:b]
            gram[k, c : c + step] = some @ some.mT
            cross[k, c : c + step] = (some @ rest[:, a:b, None])[:, :, 0]
            square[k, c : c + step] = rest[:, a:b].square().sum(1)
    return gram, cross, square


def _solve(gram: Tensor, cross: Tensor, alpha: float) -> Tensor:
    """[C, M + 1]; the last one, the bias, is not punished beyond what keeps a class without rows solvable."""
    penalty = torch.full((gram.shape[-1],), float(alpha), dtype=torch.float64)
    penalty[-1] = 1e-6
    system = gram + penalty.diag()
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()):  # products of float32 that alpha cannot make definite
        return torch.linalg.solve(system, cross)
    return torch.cholesky_solve(cross[..., None], factor)[..., 0]


def _alpha(products: Products) -> float:
    """From the strongest on, as long as held-out loss falls."""
    best, chosen = float("inf"), ALPHAS[0]
    for alpha in ALPHAS:
        loss = _held_out(products, alpha)
        if loss >= best:
            break
        best, chosen = loss, alpha
    return chosen


def _held_out(products: Products, alpha: float) -> float:
    """The sum of squared errors of each fold under the weights of the others."""
    gram, cross, square = products
    loss = 0.0
    for k in range(len(gram)):
        w = _solve(gram.sum(0) - gram[k], cross.sum(0) - cross[k], alpha)
        loss += float((torch.einsum("ci,cij,cj->c", w, gram[k], w) - 2 * (w * cross[k]).sum(1) + square[k]).sum())
    return loss
