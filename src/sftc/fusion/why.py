"""Why this member: what it adds, how it differs from the others, whom the team helps and harms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.honest import FOLDS, crossfit
from sftc.fusion.measures import METRICS, first, measure
from sftc.fusion.pooling import Pooling, absent
from sftc.fusion.targets import kind_of
from sftc.types import Task


def leave_one_out(
    make_fuser: Callable[[list[int]], Pooling],
    scores: Tensor,
    target: Tensor,
    features: Sequence[Tensor] = (),
    folds: int = FOLDS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What the team gains by each member: metric -> [M], positive where it is better with it; NaN where the others
    alone are no team: there are none, or all are of weight 0.

    Args:
        make_fuser: a fresh fuser of the members it is given, by number; with weights or costs, of those alone.
        features: of all members; they stay as they are.
        folds: 0 fits and scores on the same rows, which is `folds` times faster and flatters who overfits.
    """
    everybody = list(range(len(scores)))
    metrics = METRICS[kind_of(make_fuser(everybody).task)]

    def results(members: list[int]) -> list[float]:
        fuser = make_fuser(members)
        team = scores if members == everybody else scores[members]
        if folds:
            out = crossfit(fuser, team, target, features, folds, seed)
        else:
            fuser.fit(team, target, features)
            out = fuser.apply(team, features)
        return [measure(fuser.task, metric, out, target) for metric in metrics]

    full = results(everybody)
    gains = torch.full((len(metrics), len(scores)), torch.nan, dtype=torch.float64)
    for m in everybody if len(scores) > 1 else []:
        try:
            without = results([i for i in everybody if i != m])
        except Refused:
            continue
        for j, metric in enumerate(metrics):
            gains[j, m] = full[j] - without[j] if metric == "accuracy" else without[j] - full[j]
    return dict(zip(metrics, gains, strict=True))


def disagreement(task: Task, scores: Iterable[Tensor]) -> Tensor:
    """[M, M]: the share of rows two members name another class for, of labels that they set otherwise; of values the
    root of the mean squared distance. Over rows both answered; NaN where there is none."""
    said = torch.stack([_said(task, member) for member in scores])  # [M, N, K]
    out = torch.empty(len(said), len(said), dtype=torch.float64)
    for m, mine in enumerate(said):
        apart = (said - mine).square()
        if kind_of(task) != "values":
            apart = apart.clamp_max(1)  # class numbers: one is as far away as another
        out[m] = apart.flatten(1).nanmean(1)
    return out.sqrt() if kind_of(task) == "values" else out


def error_correlation(task: Task, scores: Iterable[Tensor], target: Tensor) -> Tensor:
    """[M, M]: Pearson's correlation of errors: 1 or 0 of classes and labels, answer less truth of values. Over what
    both answered; 0 where one of them is always right or always wrong, which correlates with nothing."""
    wrong = torch.stack([_error(task, member, target).flatten() for member in scores])
    known = ~wrong.isnan()
    x, n = wrong.nan_to_num(0.0), known.double()
    both = n @ n.T
    mean = (x @ n.T) / both  # [i, j]: mean of i over the rows i and j share
    spread = ((x**2) @ n.T / both - mean**2).clamp_min(0)
    product = (x @ x.T) / both - mean * mean.T
    scale = (spread * spread.T).sqrt()
    out = torch.where(scale > 1e-12, product / scale, 0.0).clamp(-1, 1)
    return out.fill_diagonal_(1.0)


def per_class(task: Task, fused: Tensor, single: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Whom the fusion helps and harms against a single member, both [N, C]: `rows`, `helped`, `harmed`, each [C].

    By true class, or by label: counts of rows that only the fusion, or only the member, gets right. Of values: counts
    of rows on which it is nearer, or farther.
    """
    mine, other = _error(task, fused, target), _error(task, single, target)
    both = ~(mine.isnan() | other.isnan())
    if kind_of(task) == "values":
        mine, other = mine.abs(), other.abs()
    counts = {"rows": both, "helped": both & (mine < other), "harmed": both & (mine > other)}
    if kind_of(task) != "classes":
        return {name: rows.sum(0) for name, rows in counts.items()}
    return {name: torch.bincount(target[rows[:, 0]], minlength=task.out_dim) for name, rows in counts.items()}


def _said(task: Task, member: Tensor) -> Tensor:
    """[N, K]: the class, the labels that are set, or the values; NaN without an answer."""
    kind = kind_of(task)
    said = member if kind == "values" else first(member)[:, None] if kind == "classes" else member >= 0.5
    return said.double().masked_fill(absent(member)[:, None], torch.nan)


def _error(task: Task, member: Tensor, target: Tensor) -> Tensor:
    """[N, K]: 1 where wrong and 0 where right, or answer less truth; NaN where not known or not answered."""
    said = _said(task, member)
    if kind_of(task) == "values":
        return said - target
    truth = target[:, None] if kind_of(task) == "classes" else target
    known = (truth >= 0) if kind_of(task) == "classes" else ~truth.isnan()
    return (said != truth).double().masked_fill(~known | said.isnan(), torch.nan)
