"""Fusion: arrays in, arrays out. Rules that pool scores of members, and what judges them. Knows no run and no file.

To add a rule: subclass `Pooling`, add a row to `FUSERS`, a YAML, and its formula to `tests/test_fusion_*.py`.
"""

from __future__ import annotations

import inspect
from typing import Any

from sftc.errors import Refused, choose, nearest
from sftc.fusion.cascade import Cascade
from sftc.fusion.means import Mean, MeanLogit, Weighted
from sftc.fusion.middles import Median, Trimmed, WeightedMedian
from sftc.fusion.picks import Best, Greedy
from sftc.fusion.pooling import Pooling
from sftc.fusion.stacking import Features, Stacking
from sftc.fusion.targets import kind_of
from sftc.fusion.temperature import Temperature
from sftc.fusion.votes import Rank, Vote, WeightedVote
from sftc.types import Task

FUSERS: dict[str, type[Pooling]] = {
    rule.name: rule
    for rule in (
        Vote,
        Mean,
        MeanLogit,
        Rank,
        Median,
        Trimmed,
        WeightedMedian,
        WeightedVote,
        Weighted,
        Greedy,
        Stacking,
        Features,
        Best,
        Cascade,
    )
}


def make(name: str, task: Task, **options: Any) -> Pooling:
    """A fuser by its name.

    Raises:
        Refused: no such rule or option (the nearest is named), or it makes no sense for this task.
    """
    rule = FUSERS[choose("fuse", name, FUSERS)]
    known = list(inspect.signature(rule).parameters)[1:]
    for option in options:
        if option not in known:
            raise Refused(
                f"fuse={name} has no option '{option}'{nearest(option, known)} (it has: {', '.join(known) or 'none'})"
            )
    return rule(task, **options)


__all__ = ["FUSERS", "Pooling", "Temperature", "kind_of", "make"]
