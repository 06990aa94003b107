"""Small teams to fuse: members of uneven quality on a task of each kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc.fusion import FUSERS, make
from sftc.fusion.pooling import Pooling
from sftc.tasks import Classification, MultiLabel, Regression

TASKS = {
    "classes": Classification(["a", "b", "c"]),
    "labels": MultiLabel(["x", "y"]),
    "values": Regression(["u", "v"]),
}


def options(name: str, members: int) -> dict[str, Any]:
    """What a rule cannot do without, and what makes it fast."""
    numbers = [1.0 + m for m in range(members)]
    return {
        "weighted_median": {"weights": numbers},
        "weighted_vote": {"weights": numbers},
        "cascade": {"costs": numbers},
        "stacking": {"alpha": 1.0},
        "features": {"alpha": 1.0},
    }.get(name, {})


def team(kind: str, members: int = 4, rows: int = 120, seed: int = 0, worst: float = 2.0) -> tuple[Tensor, Tensor]:
    """Scores [M, N, C] of members, each worse than the one before, and targets."""
    g = torch.Generator().manual_seed(seed)
    task = TASKS[kind]
    if kind == "classes":
        target = torch.randint(task.out_dim, (rows,), generator=g)
        signal = 2.0 * torch.nn.functional.one_hot(target, task.out_dim)
    elif kind == "labels":
        target = torch.randint(2, (rows, task.out_dim), generator=g).float()
        signal = 4 * target - 2
    else:
        target = torch.randn(rows, task.out_dim, generator=g)
        signal = target
    noise = torch.randn(members, rows, task.out_dim, generator=g) * torch.linspace(0.6, worst, members)[:, None, None]
    return torch.stack([task.scores(z) for z in signal + noise]), target


def rule(name: str, kind: str, members: int = 4, **more: Any) -> Pooling:
    return make(name, TASKS[kind], **(options(name, members) | more))


PAIRS = [(name, kind) for name, fuser in FUSERS.items() for kind in TASKS if kind in fuser.kinds]
