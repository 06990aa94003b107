"""Predictions of a class at each of many positions, held small: two bytes a score, or the largest few of each, and of
many in a file.

They answer for whole `Predictions` where somebody asks for all of them at once; who goes through millions asks piece by
piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sftc.filed import Part, Spool
from sftc.types import Predictions

LIMIT = 256 << 20  # bytes of all scores in fp16; above that the largest TOPK of each position, and their classes
TOPK = 3
HELD = 32 << 20  # bytes of predictions that stay in memory; more of them go into a file
PIECE = 1 << 16  # positions looked at together
SAMPLE = 1 << 16  # of more positions, so many stand for all where a rule is fitted or members are compared
PER_ROW = ("rows", "counts")  # parts of which there is one for each row, not for each position; always in memory
Parts = Mapping[str, Part]


class Positions:
    """Scores of P positions in C classes, in source order.

    Args:
        parts: `scores` fp16 [P, C]; or `top` fp16 [P, k] and `which` uint8 [P, k]. `target` uint8 [P]; `rows` and
            `counts` long [R]: how many positions of which source row follow each other. All but these may be in files.
        classes: C.
    """

    __slots__ = ("_ends", "_rows", "classes", "parts")

    def __init__(self, parts: Parts, classes: int) -> None:
        self.parts, self.classes = parts, classes
        self._rows, counts = (parts[name][:] for name in PER_ROW)
        self._ends = counts.cumsum(0)

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
        return self._row(slice(None))

    @property
    def target(self) -> Tensor:
        return self.parts["target"][:].long()

    @property
    def scores(self) -> Tensor:
        """Float32 [P, C], all of them."""
        return self._scores(slice(None))

    def take(self, at: slice | Tensor) -> Predictions:
        """Some positions, a stretch or sorted ones, as plain predictions."""
        return Predictions(self._scores(at), self.parts["target"][at].long(), self._row(at))

    def pieces(self) -> Iterator[tuple[slice, Predictions]]:
        """All of them, a piece at a time, and where each lies."""
        for a in range(0, len(self), PIECE):
            at = slice(a, a + PIECE)
            yield at, self.take(at)

    def sample(self) -> Predictions:
        """So many that they stand for all; the same ones for all predictions of as many positions."""
        return self.take(chosen(len(self)))

    def _row(self, at: slice | Tensor) -> Tensor:
        at = torch.arange(*at.indices(len(self))) if isinstance(at, slice) else at
        return self._rows[torch.searchsorted(self._ends, at, right=True)]

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
        folder: where a file may lie that takes them once they are many.
    """

    def __init__(self, classes: int, expected: int, folder: Path | None) -> None:
        self.classes, self.folder = classes, folder
        self.dense = 2 * classes * expected <= LIMIT or classes <= TOPK
        self.found: dict[str, list[Tensor]] = {}
        self.held = 0  # bytes of what is found and in memory
        self.spools: dict[str, Spool] = {}

    def add(self, scores: Tensor, target: Tensor, row: Tensor) -> None:
        """Scores [p, C], target [p], row [p]; a row's positions follow each other.

        Raises:
            Stopped: the disk does not take them.
        """
        rows, counts = row.unique_consecutive(return_counts=True)
        parts = {"target": target.to(torch.uint8), "rows": rows, "counts": counts}
        if self.dense:
            parts["scores"] = scores.half()
        else:
            top = scores.topk(TOPK, 1)
            parts |= {"top": top.values.half(), "which": top.indices.to(torch.uint8)}
        for name, t in parts.items():
            self.found.setdefault(name, []).append(t.cpu())
            self.held += t.nbytes if name not in PER_ROW else 0
        if self.held > HELD:
            self._spill()

    def _spill(self) -> None:
        """What is in memory goes into the files."""
        for name in self.found.keys() - set(PER_ROW):
            some = self.found[name]
            if name not in self.spools:
                self.spools[name] = Spool(self.folder, some[0].dtype, tuple(some[0].shape[1:]))
            for t in some:
                self.spools[name].add(t)
            some.clear()
        self.held = 0

    def whole(self) -> Positions:
        if self.spools:
            self._spill()
        parts: dict[str, Part] = {name: torch.cat(self.found[name]) for name in self.found if name not in self.spools}
        return Positions(parts | {name: spool.whole() for name, spool in self.spools.items()}, self.classes)
