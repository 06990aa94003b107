"""Fusing what members say of millions of pixels: rules are fitted on some, and go through all piece by piece.

Which pixels stand for all is fixed (`positions.chosen`), so that every rule and every member is seen on the same ones.
Nothing here holds the scores of all members at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sftc.positions import SAMPLE, Gathered, Positions, Said
from sftc.types import Metrics, Predictions, Task

if TYPE_CHECKING:
    from sftc.strategies.fusing import Outcome

Fuse = Callable[[Tensor, Tensor], Tensor]  # scores [M, p, C] and rows [p] -> [p, C]


def mean(parts: Sequence[Said], folder: Path) -> Said:
    """The mean of what several models say of the same answers.

    Args:
        folder: where a file may lie that takes those about millions of pixels.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if not isinstance(first, Positions):
        return Predictions(torch.stack([p.scores for p in parts]).mean(0), first.target, first.row)
    return _gathered(first, ((scores.mean(0), some) for scores, some in _together(parts)), folder)


def told(split: str, p: Positions) -> str:
    """Of how many pixels the tables speak."""
    return f"{split}: rules fitted and compared on {SAMPLE:,} of {len(p):,} pixels, by a fixed seed; scores are of all"


class Everywhere:
    """A fitted rule on all pixels: on validation of each row by a rule that was fitted on others, as on the sample.

    Args:
        fold: of each pixel of the sample of validation.
    """

    def __init__(self, outcome: Outcome, said: dict[str, list[Positions]], fold: Tensor) -> None:
        self.outcome, self.said, self.fold = outcome, said, fold

    def metrics(self) -> dict[str, Metrics]:
        out = {}
        for split in self.said:
            meter = self.outcome.task.meter(full=False)
            for scores, some in self._fused(split):
                meter.update(self.outcome.task.logits(scores), some.target, row=some.row)
            out[split] = meter.compute()
        return out

    def predictions(self, folder: Path) -> dict[str, Said]:
        """`folder`: as of `mean`."""
        return {split: _gathered(said[0], self._fused(split), folder) for split, said in self.said.items()}

    def _fused(self, split: str) -> Iterator[tuple[Tensor, Predictions]]:
        fuse = self._honest() if split == "val" else self._kept
        for scores, some in _together(self.said[split]):
            yield fuse(scores, some.row), some

    def _kept(self, scores: Tensor, row: Tensor) -> Tensor:
        fused = self.outcome.pooling.apply(scores)
        return _heated(self.outcome.task, fused, self.outcome.temperature)

    def _honest(self) -> Fuse:
        """By the folds of the sample, which are of whole rows; a row without a place in the sample is in the first."""
        task, row, fold = self.outcome.task, self.outcome.voices[0].found["val"].row, self.fold
        of_row = torch.zeros(int(row.max()) + 1, dtype=torch.long).index_copy(0, row, fold)
        count = int(fold.max()) + 1
        rules = self.outcome.of_folds or [self.outcome.pooling] * count
        heats = [heat.value for heat in self.outcome.heats] or [1.0] * count

        def fuse(said: Tensor, row: Tensor) -> Tensor:
            out = torch.empty(said.shape[1:])
            mine = of_row[row.clamp(max=len(of_row) - 1)]
            for k in mine.unique().tolist():
                at = (mine == k).nonzero()[:, 0]
                out[at] = _heated(task, rules[k].apply(said[:, at]), heats[k]).float()
            return out

        return fuse


def _heated(task: Task, fused: Tensor, temperature: float) -> Tensor:
    return fused if temperature == 1 else task.scores(task.logits(fused) / temperature)


def _together(said: Sequence[Said]) -> Iterator[tuple[Tensor, Predictions]]:
    """Scores of all members [M, p, C] about some positions, and these."""
    for parts in zip(*(p.pieces() for p in said if isinstance(p, Positions)), strict=True):
        yield torch.stack([some.scores for _, some in parts]), parts[0][1]


def _gathered(like: Positions, fused: Iterator[tuple[Tensor, Predictions]], folder: Path) -> Positions:
    out = Gathered(like.classes, len(like), folder)
    for scores, some in fused:
        out.add(scores, some.target, some.row)
    return out.whole()
