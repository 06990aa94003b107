"""Columns of a table that say the target: what will not be known when it matters makes every score too good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sftc.columns import Column

_ROWS = 20_000  # looked at
_EXACT = 1 - 1e-9  # squared correlation of what are no two things


def leaks(rows: Tensor, columns: Sequence[Column], target: Tensor) -> list[str]:
    """A warning for each column that says the target, and one for numbers that add up to it.

    Args:
        rows: [n, D].  target: [n] classes (-1: unknown), or [n, K] (NaN: unknown).
    """
    known = target >= 0 if target.ndim == 1 else ~target.isnan().any(1)
    rows, target = rows[known][:_ROWS].double(), target[known][:_ROWS]
    if len(target) < 10:
        return []
    if target.ndim == 1:
        names = [c.source for j, c in enumerate(columns) if _one_to_one(rows[:, j], target)]
    else:
        names = [c.source for j, c in enumerate(columns) if any(_same(rows[:, j], t.double()) for t in target.T)]
    names = list(dict.fromkeys(names))
    if names:
        return [f"warning: column {name} says the target itself; data.drop=[{name}] leaves it out" for name in names]
    numbers = [j for j, c in enumerate(columns) if not c.coded]
    if target.ndim == 1 or len(target) < 3 * len(numbers) or not numbers:
        return []
    return _added(rows[:, numbers], [columns[j].name for j in numbers], target.double())


def _one_to_one(column: Tensor, target: Tensor) -> bool:
    """Whether each value of the column stands with one class, and each class with one value."""
    column = column.nan_to_num(-1e30)
    values, code = column.unique(return_inverse=True)
    classes = target.unique()
    return 1 < len(values) == len(classes) == len(torch.stack([code, target]).unique(dim=1).T)


def _same(column: Tensor, target: Tensor) -> bool:
    """Whether the column is the target, in its own unit."""
    if column.isnan().any():
        return False
    a, b = column - column.mean(), target - target.mean()
    return bool((a * b).sum() ** 2 > _EXACT * (a * a).sum() * (b * b).sum() > 0)


def _added(x: Tensor, names: list[str], target: Tensor) -> list[str]:
    """Numbers of which a weighted sum is the target to the last digit."""
    x = x.nan_to_num()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    out = []
    for goal in target.T:
        goal = goal - goal.mean()
        weight = torch.linalg.lstsq(x, goal[:, None], driver="gelsd").solution[:, 0]
        if (goal - x @ weight).square().sum() < (1 - _EXACT) * goal.square().sum():
            large = [n for n, w in zip(names, weight.abs(), strict=True) if w > 1e-4 * weight.abs().max()]
            out.append(f"warning: columns {', '.join(large[:8])} add up to the target; data.drop=[...] leaves them out")
    return out
