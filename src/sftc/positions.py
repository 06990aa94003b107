"""Predictions of a class at each of many positions, held small: two bytes a score, or the largest few of each.

They answer for whole `Predictions` where somebody asks for all of them at once; who goes through millions asks piece by
piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sftc.types import Predictions

LIMIT = 256 << 20  # bytes of all scores in fp16; above that the largest TOPK of each position, and their classes
TOPK = 3
PIECE = 1 << 16  # positions looked at together
SAMPLE = 1 << 16  # of more positions, so many stand for all where a rule is fitted or members are compared
Parts = dict[str, Tensor]


class Positions:
    """Scores of P positions in C classes, in source order.

    Args:
        parts: `scores` fp16 [P, C]; or `top` fp16 [P, k] and `which` uint8 [P, k]. `target` uint8 [P]; `rows` and
            `counts` long [R]: how many positions of which source row follow each other.
        classes: C.
    """

    __slots__ = ("classes", "parts")

    def __init__(self, parts: Parts, classes: int) -> None:
        self.parts, self.classes = parts, classes

    def __len__(self) -> int:
        return len(self.parts["target"])

    def __str__(self) -> str:
        """How many there are, how large, and how held."""
        how = "" if "scores" in self.parts else f"the largest {self.parts['top'].shape[1]} of {self.classes}, "
        size = sum(t.nbytes for t in self.parts.values()) / 1e6
        return f"{len(self):,} pixels, {size:.1f} MB ({how}fp16)"

    @property
    def row(self) -> Tensor:
        """Long [P]: the source row of each position."""
        return self.parts["rows"].repeat_interleave(self.parts["counts"])

    @property
    def target(self) -> Tensor:
        return self.parts["target"].long()

    @property
    def scores(self) -> Tensor:
        """Float32 [P, C], all of them."""
        return self._scores(slice(None))

    def take(self, at: slice | Tensor) -> Predictions:
        """Some positions, as plain predictions."""
        return Predictions(self._scores(at), self.parts["target"][at].long(), self.row[at])

    def pieces(self) -> Iterator[tuple[slice, Predictions]]:
        """All of them, a piece at a time, and where each lies."""
        row = self.row
        for a in range(0, len(self), PIECE):
            at = slice(a, a + PIECE)
            yield at, Predictions(self._scores(at), self.parts["target"][at].long(), row[at])

    def sample(self) -> Predictions:
        """So many that they stand for all; the same ones for all predictions of as many positions."""
        return self.take(chosen(len(self)))

    def _scores(self, at: slice | Tensor) -> Tensor:
        if "scores" in self.parts:
            return self.parts["scores"][at].float()
        top, which = self.parts["top"][at].float(), self.parts["which"][at].long()
        # What the others have together is shared by them evenly.
        rest = (1 - top.sum(1, keepdim=True)).clamp_min(0) / max(1, self.classes - top.shape[1])
        return rest.expand(-1, self.classes).scatter(1, which, top)


Said = Predictions | Positions


def chosen(count: int) -> Tensor | slice:
    """Which of `count` positions stand for all: SAMPLE of them by a fixed seed, sorted; all if there are no more."""
    if count <= SAMPLE:
        return slice(None)
    draw = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=draw)[:SAMPLE].sort().values


def sampled(p: Said) -> Predictions:
    """Those positions that stand for all; of one answer per row, every one."""
    return p.sample() if isinstance(p, Positions) else p


class Gathered:
    """Positions that come batch by batch.

    Args:
        classes: C.
        expected: how many positions there will be at most: decides how scores are held.
    """

    def __init__(self, classes: int, expected: int) -> None:
        self.classes = classes
        self.dense = 2 * classes * expected <= LIMIT or classes <= TOPK
        self.found: list[Parts] = []

    def add(self, scores: Tensor, target: Tensor, row: Tensor) -> None:
        """Scores [p, C], target [p], row [p]; a row's positions follow each other."""
        rows, counts = row.unique_consecutive(return_counts=True)
        parts = {"target": target.to(torch.uint8), "rows": rows, "counts": counts}
        if self.dense:
            parts["scores"] = scores.half()
        else:
            top = scores.topk(TOPK, 1)
            parts |= {"top": top.values.half(), "which": top.indices.to(torch.uint8)}
        self.found.append({name: t.cpu() for name, t in parts.items()})

    def whole(self) -> Positions:
        names = self.found[0]
        return Positions({name: torch.cat([f.pop(name) for f in self.found]) for name in list(names)}, self.classes)
