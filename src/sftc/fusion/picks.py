"""Rules that pick members: the best one, and greedy selection with replacement (Caruana et al. 2004)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from sftc.errors import Refused, choose
from sftc.fusion.measures import FLOOR, METRICS, known_columns, measure, row_values, total
from sftc.fusion.pooling import Pooling, absent, pool
from sftc.types import Task

TIE = 1e-12  # losses nearer than this are the same
BLOCK = 1 << 21  # numbers of a temporary


class Best(Pooling):
    """The best single member on validation, ties to the earlier. Where it has no answer, the mean of the others.

    Args:
        criterion: auto (accuracy, of values rmse), accuracy, nll, rmse.
    """

    name = "best"
    needs_fit = True

    def __init__(self, task: Task, criterion: str = "auto") -> None:
        super().__init__(task)
        self.criterion = choose("criterion", criterion, ("auto", *METRICS[self.kind]))
        if criterion == "auto":
            self.criterion = METRICS[self.kind][0]

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        self._choose(self._values(scores, target))

    def fit_folds(self, scores: Tensor, target: Tensor, fold: Tensor, features: Sequence[Tensor] = ()) -> list[Self]:
        values, parts = self._values(scores, target), self._copies(fold)
        for k, part in enumerate(parts):
            part._choose(values[:, fold != k])
        self._choose(values)
        return parts

    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        """[M, N]"""
        return torch.stack([row_values(self.task, self.criterion, member, target) for member in scores])

    def _choose(self, values: Tensor) -> None:
        got = total(self.criterion, values.nanmean(1))
        if bool(got.isnan().all()):
            raise Refused("fuse=best finds no labelled row with an answer; give validation rows with labels")
        loss = (-got if self.criterion == "accuracy" else got).nan_to_num(torch.inf)
        self.learnt = {"weights": torch.zeros(len(values), dtype=torch.float64)}
        self.learnt["weights"][int(loss.argmin())] = 1.0

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return pool(scores, self.fitting(self.part("weights"), scores)).to(scores.dtype)


class Greedy(Pooling):
    """Add, with replacement, the member that helps the mean most; keep the best prefix.

    Ties go to members already chosen, then to the earlier: a copy of a member is never carried along.

    Args:
        rounds: how many are added before the best prefix is taken.
        criterion: auto (nll, of values rmse), nll, rmse; accuracy looks at all columns, takes minutes where nll takes
            a tenth of a second, and leaves NLL worse.
    """

    name = "greedy"
    needs_fit = True

    def __init__(self, task: Task, rounds: int = 50, criterion: str = "auto") -> None:
        super().__init__(task)
        self.criterion = choose("criterion", criterion, ("auto", *METRICS[self.kind]))
        if criterion == "auto":
            self.criterion = METRICS[self.kind][-1]
        if rounds < 1:
            raise Refused(f"rounds={rounds} must be 1 or more")
        self.rounds = rounds

    def fit(self, scores: Tensor, target: Tensor, features: Sequence[Tensor] = ()) -> None:
        if self.criterion == "accuracy":
            counts = self._by_accuracy(scores, target)
        else:
            said, truth = known_columns(self.task, scores, target)
            loss = _nll if truth is None else lambda mean: (mean - truth).square_().mean(1).sqrt_()
            counts = select(said, loss, self.rounds)
        self.learnt = {"weights": counts / counts.sum()}

    def _by_accuracy(self, scores: Tensor, target: Tensor) -> Tensor:
        gaps = torch.stack([absent(member) for member in scores])
        keep = self.task.labelled(target) & ~gaps.all(0)
        if not bool(keep.any()):
            raise Refused("fuse=greedy finds no labelled row with an answer; give validation rows with labels")
        scores, target, gaps = scores[:, keep], target[keep], gaps[:, keep]
        if bool(gaps.any()):
            scores = torch.where(gaps[:, :, None], pool(scores).to(scores.dtype), scores)

        def loss(mean: Tensor) -> Tensor:
            return torch.tensor([-measure(self.task, "accuracy", one, target) for one in mean], dtype=torch.float64)

        return select(scores, loss, self.rounds)

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        return pool(scores, self.fitting(self.part("weights"), scores)).to(scores.dtype)


def _nll(mean: Tensor) -> Tensor:
    """[m] of probabilities [m, K], by logarithms of products of eight: of FLOOR too these are numbers, and faster."""
    known = mean.shape[1]
    mean.clamp_min_(FLOOR)
    for _ in range(3):
        half = (mean.shape[1] + 1) // 2
        low, high = mean[:, :half], mean[:, half:]
        mean = low.clone()
        mean[:, : high.shape[1]] *= high
    return mean.log_().sum(1).div_(-known)


def select(members: Tensor, loss: Callable[[Tensor], Tensor], rounds: int) -> Tensor:
    """[M] how often each of members [M, ...] was taken in the best prefix. `loss` of means [m, ...] may overwrite."""
    total = torch.zeros_like(members[0], dtype=torch.float64)
    counts = torch.zeros(len(members), dtype=torch.float64)
    best, kept = torch.inf, counts
    blocks = members.split(max(1, BLOCK // max(1, members[0].numel())))
    for taken in range(1, rounds + 1):
        losses = torch.cat([loss((total + block).div_(taken)) for block in blocks])
        tied = losses <= losses.min() + TIE
        chosen = tied & (counts > 0)
        pick = int((chosen if bool(chosen.any()) else tied).byte().argmax())
        total += members[pick]
        counts[pick] += 1
        if float(losses[pick]) < best - TIE:
            best, kept = float(losses[pick]), counts.clone()
    return kept
