"""Is one set of scores better than another, or is it the choice of rows? A paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.measures import METRICS, row_values, total
from sftc.fusion.targets import kind_of
from sftc.types import Task

DRAWS = 1000
BLOCK = 1 << 22  # counts held at once
Difference = dict[str, Any]


def paired(
    task: Task, scores: Tensor, base: Tensor, target: Tensor, draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """`scores` less `base`, both [N, C], by metric: accuracy and nll, of values rmse.

    Returns:
        metric -> `difference` on the rows as they are; `mean`, `low` and `high` of it over the draws (2.5 and 97.5 %);
        `noise`: True where 0 lies between these two, so the difference cannot be told from none.

    Raises:
        Refused: no row is labelled and answered by both.
    """
    return against(task, [scores], base, target, draws, seed)[0]


def against(
    task: Task,
    candidates: Sequence[Tensor],
    base: Tensor,
    target: Tensor,
    draws: int = DRAWS,
    seed: int = 0,
    row: Tensor | None = None,
) -> list[dict[str, Difference]]:
    """`paired` for many candidates on the same draws, which cost more than the comparing.

    Args:
        row: [N] which row each answer is about, where rows have several: whole rows are drawn.
    """
    metrics = METRICS[kind_of(task)]
    out: list[dict[str, Difference]] = [{} for _ in candidates]
    values = [torch.stack([row_values(task, m, s, target) for s in (base, *candidates)]) for m in metrics]
    table = torch.stack(values)  # [metrics, 1 + candidates, N]
    # A row that one candidate did not answer is no reason to judge the others on fewer.
    gaps = table.isnan().any(0)
    for same in gaps[1:].unique(dim=0):
        group = [i for i, gap in enumerate(gaps[1:]) if bool((gap == same).all())]
        keep = ~(same | gaps[0])
        if not bool(keep.any()):
            raise Refused("nothing to compare: no row is labelled and has an answer of both")
        some = table[:, [0, *(i + 1 for i in group)]][:, :, keep]
        kept = None if row is None else row[keep]
        drawn = _resample(some.flatten(0, 1), draws, seed, kept).unflatten(
            0, some.shape[:2]
        )  # [metrics, 1 + group, draws]
        for m, metric in enumerate(metrics):
            plain, means = total(metric, some[m].mean(1)), total(metric, drawn[m])
            for j, i in enumerate(group, 1):
                out[i][metric] = _difference(float(plain[j] - plain[0]), means[j] - means[0])
    return out


def _resample(values: Tensor, draws: int, seed: int, row: Tensor | None = None) -> Tensor:
    """Means [J, draws] of values [J, N] over rows drawn with replacement, the same rows for all J."""
    size = values.new_ones(values.shape[1])  # answers of each row
    if row is not None and len(row.unique()) < len(row):
        at, size = row.unique(return_inverse=True, return_counts=True)[1:]
        values, size = values.new_zeros(len(values), len(size)).index_add(1, at, values), size.to(values.dtype)
    rows = values.shape[1]
    generator = torch.Generator().manual_seed(seed)
    step = max(1, BLOCK // rows)
    means = []
    for a in range(0, draws, step):
        n = min(step, draws - a)
        drawn = torch.randint(rows, (n, rows), generator=generator)
        counts = torch.zeros(n, rows, dtype=values.dtype).scatter_add_(1, drawn, values.new_ones(1).expand(n, rows))
        means.append(values @ counts.T / (counts @ size))
    return torch.cat(means, 1)


def _difference(plain: float, drawn: Tensor) -> Difference:
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return {"difference": plain, "mean": float(drawn.mean()), "low": low, "high": high, "noise": low <= 0 <= high}
