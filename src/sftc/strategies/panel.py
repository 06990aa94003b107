"""What all voices say, as arrays that every rule is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sftc.fusion.honest import held_together
from sftc.lab import Lab
from sftc.types import Predictions

if TYPE_CHECKING:
    from sftc.strategies.fusing import Voice


class Panel:
    """Scores [M, N, C] by split. Answers of validation stand in the order of their folds, so that those of a fold are a
    view: copies of them took longer than fusing them. Folds are of whole rows, or of whole groups of them.

    Attributes:
        fold: [N] of each answer of validation, ascending.
        target: its targets in that order.
    """

    def __init__(self, lab: Lab, voices: Sequence[Voice]) -> None:
        first: dict[str, Predictions] = voices[0].found
        val = first["val"]
        fold = held_together(lab.task, val.target, seed=lab.split_seed, row=_together(lab, val.row))
        self._order = fold.argsort(stable=True)
        self._back = self._order.argsort()
        self.fold, self.target = fold[self._order], val.target[self._order]
        self.scores = {split: self._stacked([v.found[split].scores for v in voices], split) for split in first}

    def _stacked(self, parts: list[Tensor], split: str) -> Tensor:
        out = parts[0].new_empty(len(parts), *parts[0].shape)
        for scores, into in zip(parts, out, strict=True):
            if split == "val":
                torch.index_select(scores, 0, self._order, out=into)
            else:
                into.copy_(scores)
        return out

    def ordered(self, value: Tensor) -> Tensor:
        """Something of every answer of validation, [N, ...], in the order of `scores`."""
        return value[self._order]

    def restored(self, value: Tensor) -> Tensor:
        """The other way round."""
        return value[self._back]


def _together(lab: Lab, row: Tensor) -> Tensor:
    """[N] a number for each answer, the same where they are to be held out together."""
    group, rows = lab.run.groups(), lab.run.rows_of("val")
    if group is None or rows is None or not bool(torch.isin(row, rows).all()):
        return row
    if len(group.unique()) < 2:
        lab.watch.say("validation is one group (data.groups): what is fitted on it is judged by rows of the same one")
        return row
    order = rows.argsort()
    return group[order][torch.searchsorted(rows[order], row)]
