"""Rules that look at order alone: who is named first, and who comes before whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sftc.fusion.measures import first
from sftc.fusion.pooling import Pooling, absent, answers, given, pool
from sftc.fusion.targets import PROBABILITIES
from sftc.types import Task

TIE = 1e-9  # shares of votes nearer than this are the same
INSTEAD = "fuse=mean or fuse=median"


class Vote(Pooling):
    """A vote per member; ties go to the larger summed probability.

    The mean probability is added as if it were one vote more. It can never outvote a lead of one (that would take all
    members naming the loser), so it breaks exactly the ties, and no class is left with probability 0.
    """

    name = "vote"
    kinds = PROBABILITIES
    instead = INSTEAD

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        members = answers(scores)
        votes = _votes(self.kind, scores) * members
        return ((votes + pool(scores)) / (members + 1)).to(scores.dtype)


class WeightedVote(Pooling):
    """A vote per member that counts its weight, as in SAMME (Zhu et al. 2009); ties as in `Vote`.

    Args:
        weights: one number per member.
    """

    name = "weighted_vote"
    kinds = PROBABILITIES
    instead = "fuse=weighted_median"

    def __init__(self, task: Task, weights: Sequence[float] | None = None) -> None:
        super().__init__(task)
        numbers = given(self.name, "weights", weights)
        self.learnt = {"weights": numbers / numbers.sum()}

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        votes = _votes(self.kind, scores, self.fitting(self.part("weights"), scores))
        mean = pool(scores)
        out = (len(scores) * votes + mean) / (len(scores) + 1)
        # Unlike single votes, weights can differ by less than the mean: then the winner by weight takes first place.
        if self.kind == "classes":
            best = votes.amax(1, keepdim=True)
            winner = torch.where(votes >= best - TIE, mean, -1.0).nan_to_num(-1.0).argmax(1, keepdim=True)
            top = out.nan_to_num(0.0).argmax(1, keepdim=True)
            first, second = out.gather(1, top), out.gather(1, winner)
            return out.scatter(1, top, second).scatter(1, winner, first).to(scores.dtype)
        yes = torch.where((votes - 0.5).abs() <= TIE, mean >= 0.5, votes > 0.5)
        return torch.where((out >= 0.5) == yes, out, 1 - out).to(scores.dtype)


class Rank(Pooling):
    """Borda's count: a member gives each class as many points as it puts others below it, half a point for each beside
    it. Ties go to the larger summed probability. The points of a row are divided by their sum.
    """

    name = "rank"
    kinds = frozenset({"classes"})
    instead = INSTEAD

    def apply(self, scores: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        members = answers(scores)
        # Sums of points are multiples of a half: less than that only breaks ties.
        points = pool(scores, change=_points) * members + 0.499 * pool(scores)
        return (points / points.sum(1, keepdim=True)).to(scores.dtype)


def _votes(kind: str, scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """[N, C] share of the votes, weighted by [M]; as `pool` of one-hot answers, which it does not write out."""
    if kind == "labels":
        return pool(scores, weights, lambda member: (member >= 0.5).to(member.dtype))
    votes = scores.new_zeros(scores.shape[1:], dtype=torch.float64)
    for m, member in enumerate(scores):
        here = ~absent(member) * (1.0 if weights is None else float(weights[m]))
        votes.scatter_add_(1, first(member)[:, None], here.double()[:, None])
    count = votes.sum(1, keepdim=True)
    lost = count[:, 0] == 0
    votes /= count
    if weights is not None and bool(lost.any()):
        votes[lost] = _votes(kind, scores[:, lost])
    return votes


def _points(member: Tensor) -> Tensor:
    """[N, C]: how many classes of the row lie below each, plus half of those level with it."""
    order = torch.from_numpy(np.argsort(member.numpy(), 1))  # seven times faster than torch on short rows
    value = member.gather(1, order)
    place = torch.arange(value.shape[1], dtype=torch.float32).expand(value.shape).clone()
    level = value[:, 1:] == value[:, :-1]
    if bool(level.any()):
        tied = level.any(1)
        some = value[tied].contiguous()
        below = torch.searchsorted(some, some)
        place[tied] = (below + torch.searchsorted(some, some, right=True) - 1).float() / 2
    return torch.empty_like(place).scatter_(1, order, place)
