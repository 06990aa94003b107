"""Which rows are held out where they are not drawn one by one: the last ones, or whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sftc.data import random
from sftc.data.cells import Cells
from sftc.data.names import told
from sftc.data.pictures import shown
from sftc.errors import Refused


class Apart:
    """How the rows of a table are kept apart.

    Args:
        order: [n] long, the place of each row where test and val are the last rows (scikit-learn's shuffle=False); or
            None.
        groups: [n] long, the group of each row where those of a group stay together (scikit-learn's GroupShuffleSplit
            and GroupKFold); or None.
        column: that says so, for notes.
    """

    def __init__(self, column: str, *, order: Tensor | None = None, groups: Tensor | None = None) -> None:
        self.column, self.order, self.groups = column, order, groups

    def taken(self, rows: Tensor, share: float, seed: int, stream: int) -> Tensor:
        """Those of `rows` [n] that are held out, sorted: a `share`, of groups as near to it as whole ones come."""
        if self.order is not None:
            last = rows[self.order[rows].argsort()][len(rows) - round(share * len(rows)) :]
            return last.sort()[0]
        assert self.groups is not None
        names, sizes = self.groups[rows].unique(return_counts=True)
        key = random.bits(seed, names.numpy(), 0, (stream,))[:, 0]
        drawn = torch.from_numpy(np.argsort(key, kind="stable"))
        held = sizes[drawn].cumsum(0)
        # Never none and never all of them, however large they are.
        count = min(1 + int((held - share * len(rows)).abs().argmin()), len(names) - 1)
        return rows[torch.isin(self.groups[rows], names[drawn[:count]])]

    def said(self, split: str, rows: Tensor) -> str:
        """A note on what was held out."""
        if self.order is not None:
            what = "the last" if split == "test" else "before those the last" if split == "val" else ""
            return f"{split}: {what} {len(rows):,} rows by {self.column} (data.order_by)"
        assert self.groups is not None
        count = len(self.groups[rows].unique())
        return f"{split}: {len(rows):,} rows, all of {count:,} groups of {self.column} (data.groups)"


def order_of(cells: Cells) -> Apart:
    """Rows in the order of a column of dates or numbers; of equal ones as they stand in the file.

    Raises:
        Refused: a row has neither.
    """
    dates, numbers = cells.dates, cells.numbers
    values = dates if np.isnan(dates).sum() < np.isnan(numbers).sum() else numbers
    odd = np.flatnonzero(np.isnan(values))
    if len(odd):
        said = "nothing" if cells.words[odd[0]] is None else repr(str(cells.words[odd[0]])[:40])
        raise Refused(f"data.order_by={cells.name}: row {odd[0]} says {said}, which is no date and no number")
    place = np.empty(len(values), dtype=np.int64)
    place[np.argsort(values, kind="stable")] = np.arange(len(values))
    return Apart(cells.name, order=torch.from_numpy(place))


def groups_of(cells: Cells) -> Apart:
    """Rows of one word, or number, in a column stay together. Raises Refused: see `grouped`."""
    return grouped(cells.name, list(cells.words))


def named(pattern: str | None, files: Sequence[str]) -> Apart | None:
    """Rows stay together whose file names say the same in the group `group` of a pattern, as a speaker or a patient.

    Args:
        pattern: a regular expression of whole names without their endings; None: rows are drawn one by one.
        files: the path of each row.

    Raises:
        Refused: it is no such expression, or a file does not fit it; see also `grouped`.
    """
    if pattern is None:
        return None
    found = told("data.groups", pattern, [Path(file).stem for file in files], "group")
    odd = next((file for file, said in zip(files, found, strict=True) if not (said or {}).get("group")), None)
    if odd is not None:
        raise Refused(f"data.groups={pattern} does not fit {shown(odd)}; every row needs its group")
    return grouped(pattern, [(said or {})["group"] for said in found])


def grouped(what: str, words: Sequence[str | None]) -> Apart:
    """Rows of one word stay together. Raises Refused: a row says none, or there are not enough groups."""
    odd = next((i for i, word in enumerate(words) if word is None), None)
    if odd is not None:
        raise Refused(f"data.groups={what}: row {odd} says nothing; every row needs its group")
    number = {word: i for i, word in enumerate(dict.fromkeys(words))}
    if len(number) < 3:
        raise Refused(f"data.groups={what} has {len(number)} groups; train, val and test need one each")
    return Apart(what, groups=torch.tensor([number[word] for word in words]))
