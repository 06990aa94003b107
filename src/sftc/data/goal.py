"""What is predicted of a table: which kind the target columns are of, and their cells as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.data.cells import Cells, ordered
from sftc.errors import Refused

FEW = 20  # whole numbers of at most so many values are classes


class Goal:
    """What is predicted: its kind, and the names of its classes, labels or values.

    Args:
        columns: of the target.
    """

    def __init__(self, kind: str, columns: list[str], names: list[str]) -> None:
        self.kind, self.columns, self.names = kind, columns, names

    @classmethod
    def found(cls, cells: dict[str, Cells], kind: str, like: Any, notes: list[str]) -> Goal:
        """The kind of the target columns, where it is not said. Raises Refused: they are of no kind."""
        columns = list(cells)
        if like is not None:
            return cls(like.kind, columns, like.class_names if like.kind == "classes" else columns)
        if empty := [name for name, c in cells.items() if not c.known.any()]:
            raise Refused(f"target {empty[0]} has no value in any row: there is nothing to learn from")
        if kind == "auto":
            kind, why = _kind(cells)
            notes.append(f"kind: {kind}, {why} (data.kind says another)")
        if kind != "classes":
            for c in cells.values():
                if len(said := set(c.words[c.known])) == 1:
                    raise Refused(
                        f"target {c.name} is {said.pop()[:40]} wherever it is known: there is nothing to learn"
                    )
            return cls(kind, columns, columns)
        if len(columns) > 1:
            raise Refused(f"data.kind=classes has one target, not {len(columns)}: {', '.join(columns)}")
        (only,) = cells.values()
        names = ordered(only.words[only.known])
        if len(names) < 2:
            raise Refused(f"target {only.name} has {len(names)} different values: there is nothing to tell apart")
        if len(names) > max(FEW, len(only.known) // 2):
            raise Refused(
                f"target {only.name} has {len(names)} classes in {len(only.known)} rows; set data.kind=values"
            )
        return cls(kind, columns, names)

    def read(self, cells: dict[str, Cells]) -> Tensor:
        """[n] classes, or [n, K]; unknown where the cell is missing. Raises Refused: a cell that is none of them."""
        if self.kind == "classes":
            only = cells[self.columns[0]]
            number = {name: i for i, name in enumerate(self.names)}
            if strange := sorted(set(only.words[only.known]) - number.keys()):
                row = next(i for i, w in enumerate(only.words) if w == strange[0])
                raise Refused(
                    f"target {only.name} says {strange[0][:40]!r} in row {row}, which is no class of the run or of "
                    f"train.csv (classes: {some(self.names)})"
                )
            return torch.tensor([-1 if w is None else number[w] for w in only.words])
        return torch.from_numpy(np.stack([self._values(cells[n]) for n in self.columns], 1)).float()

    def _values(self, cells: Cells) -> np.ndarray:
        values = cells.numbers.copy()
        minus = np.array([w is not None and w.startswith("-") for w in cells.words])
        values[cells.infinite] = np.where(minus, -np.inf, np.inf)[cells.infinite]  # to be refused
        if self.kind == "labels":
            values = np.where(np.isnan(values), cells.booleans, values)
        odd = np.flatnonzero(np.isnan(values) & cells.known)
        if len(odd):
            what = "0, 1, yes or no" if self.kind == "labels" else "a number"
            raise Refused(f"target {cells.name} says {str(cells.words[odd[0]])[:40]!r} in row {odd[0]}: not {what}")
        return values


def _kind(cells: dict[str, Cells]) -> tuple[str, str]:
    """What the targets are, and why."""
    numeric = all(not np.isnan(c.numbers[c.known & ~c.infinite]).any() for c in cells.values())
    if len(cells) > 1:
        binary = all(
            set(c.words[c.known]) <= {"0", "1"} or not np.isnan(c.booleans[c.known]).any() for c in cells.values()
        )
        return ("labels", "several columns of 0 and 1") if binary else ("values", "several columns of numbers")
    (only,) = cells.values()
    values = only.numbers[only.known]
    different = len(set(only.words[only.known]))
    if not numeric:
        return "classes", f"{different} different words"
    if different <= FEW and not np.isnan(values).any() and (values == np.rint(values)).all():
        return "classes", f"{different} different whole numbers"
    return "values", f"{different} different numbers"


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
