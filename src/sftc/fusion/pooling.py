"""What all ways of pooling scores share. M members, N rows, C outputs; who has no answer for a row is NaN there.

Scores of 50 members can be 200 MB: everything here goes through them member by member, in float64, and copies none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion.targets import ANY, hidden, kind_of
from sftc.types import Task


class Pooling:
    """Members' scores in, one set of scores out, in the space of `task.scores`.

    Subclasses set the class attributes, write `apply`, `fit` if there is something to learn, and keep what they learn
    in `learnt`: named arrays, so that `apply` after `load(state())` gives the same bits.

    Raises:
        Refused: the rule makes no sense for this kind of task.
    """

    name: str
    kinds: frozenset[str] = ANY
    instead: str = ""  # the way out for other kinds
    needs_fit: bool = False

    def __init__(self, task: Task) -> None:
        self.task = task
        self.kind = kind_of(task)
        self.learnt: dict[str, Tensor] = {}
        if self.kind not in self.kinds:
            raise Refused(f"fuse={self.name} makes no sense for {self.kind}; use {self.instead}")

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        """Learn from held-out rows: scores [M, N, C], target [N] or [N, C], features of [N, F]. Unlabelled rows and
        rows nobody answered are left out."""

    def fit_folds(self, scores: Tensor, target: Tensor, fold: Tensor, features: Sequence[Tensor] = ()) -> list[Self]:
        """`fit`; and for each fold of `fold` [N] a copy that was fitted without its rows. Rules that can share the work
        of these fits do. A fold is held out by hiding its labels: no copy of the scores is made for it."""
        parts = self._copies(fold)
        for k, part in enumerate(parts):
            part.fit(scores, hidden(target, fold == k), features)
        self.fit(scores, target, features)
        return parts

    def _copies(self, fold: Tensor) -> list[Self]:
        return [copy.copy(self) for _ in range(int(fold.max()) + 1)]

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """[N, C] in the type of `scores`; members without an answer are left out of a row, nobody's answer is NaN."""
        raise TypeError(f"{type(self).__name__} has no apply")

    def state(self) -> dict[str, Tensor]:
        """All it has learnt, as named arrays."""
        return {name: value.contiguous().clone() for name, value in self.learnt.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of another one."""
        self.learnt = dict(state)

    def weights(self) -> Tensor | None:
        """[M] what each member counts, summing to 1; None where that is not a number per member."""
        return self.learnt.get("weights")

    def part(self, name: str) -> Tensor:
        """An array that was learnt. Raises Refused: nothing was."""
        if name not in self.learnt:
            raise Refused(f"fuse={self.name} has no '{name}' yet: fit it, or load the state of a fitted one")
        return self.learnt[name]

    def fitting(self, per_member: Tensor, scores: Tensor) -> Tensor:
        """`per_member` [M] if that many members came. Raises Refused: another number."""
        if len(per_member) != len(scores):
            raise Refused(
                f"fuse={self.name} holds one number for each of {len(per_member)} members, and {len(scores)} came: "
                "give it the same members in the same order"
            )
        return per_member


def given(rule: str, key: str, numbers: Sequence[float] | None) -> Tensor:
    """`numbers`, one per member, as a float64 tensor. Raises Refused: none, negative or all zero."""
    if numbers is None:
        raise Refused(f"fuse={rule} needs {key}=[one number per member]")
    try:
        values = torch.tensor([float(n) for n in numbers], dtype=torch.float64)
    except (TypeError, ValueError):  # a word, or null
        values = torch.zeros(0)
    if not (len(values) and bool(values.isfinite().all()) and float(values.min()) >= 0 and float(values.sum()) > 0):
        raise Refused(f"{key}={list(numbers)} must be numbers >= 0, and not all zero")
    return values


def absent(member: Tensor) -> Tensor:
    """[N]: the rows of a member [N, C] that have no answer. A sum finds NaN without a copy of the member."""
    return member.sum(1).isnan()


def answers(scores: Tensor) -> Tensor:
    """[N, 1] float64: how many members answered each row."""
    return torch.stack([~absent(member) for member in scores]).sum(0).double()[:, None]


def pool(scores: Tensor, weights: Tensor | None = None, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean [N, C] over the members with an answer, in float64, weighted by [M], of `change(member)`.

    A row that only members of weight 0 answered is their plain mean: a doubtful answer is better than none.
    """
    if change is None and (weights is None or bool(weights.any())):
        # One look at the sum says whether anybody left a gap; most teams have none.
        counts = [1.0] * len(scores) if weights is None else weights.tolist()
        total = scores.new_zeros(scores.shape[1:], dtype=torch.float64)
        for weight, member in zip(counts, scores, strict=True):
            if weight:
                total.add_(member, alpha=weight)
        if not bool(absent(total).any()):
            return total.div_(sum(counts))
    return _with_gaps(scores, weights, change)


def _with_gaps(scores: Tensor, weights: Tensor | None, change: Callable[[Tensor], Tensor] | None) -> Tensor:
    total = scores.new_zeros(scores.shape[1:], dtype=torch.float64)
    count = scores.new_zeros(scores.shape[1], dtype=torch.float64)
    for m, member in enumerate(scores):
        weight = 1.0 if weights is None else float(weights[m])
        if weight == 0:
            continue
        gap = absent(member)
        value = member if change is None else change(member)
        total.add_(value.masked_fill(gap[:, None], 0) if bool(gap.any()) else value, alpha=weight)
        count += weight * ~gap
    out = total / count[:, None]
    lost = count == 0
    if weights is not None and bool(lost.any()):
        out[lost] = pool(scores[:, lost], None, change)
    return out
