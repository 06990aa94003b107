"""The epoch as a table: which rows it visits, in which order and view, cut into which batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sftc.data import random

_COPY = 1_000_003  # views of the copies of a row that stands in `rows` more than once lie this far apart
_WINDOW = 64  # batches whose rows are sorted by length together: little padding, and still a shuffled epoch


class Plan:
    """Which rows an epoch visits, in which order and view, cut into which batches.

    Args:
        lengths: of every row of `rows`, where they differ: a shuffled epoch then puts rows of nearly one length into a
            batch, so that little of it is padding.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        views: int | None,
        view_seed: int,
        view: int = 0,
        lengths: Tensor | None = None,
    ) -> None:
        self.rows = rows
        self.lengths = None if lengths is None or not shuffle else lengths.numpy()
        self.view = view  # of every row, where nothing is shuffled
        self.shuffle, self.seed, self.views, self.view_seed = shuffle, seed, views, view_seed
        ends = [*range(batch_size, len(rows), batch_size), len(rows)]
        if len(ends) > 1 and len(rows) - ends[-2] == 1:
            del ends[-2]  # BatchNorm cannot train on a single row
        self.bounds = list(zip([0, *ends], ends, strict=False))
        self._copy = _copies(rows.numpy())

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Row numbers and views in the order of this epoch, both long [n]."""
        if not self.shuffle:
            return self.rows, torch.full_like(self.rows, self.view)
        order = random.order(self.seed, epoch, len(self.rows))
        if self.lengths is not None:
            order = _bucketed(order, self.lengths, self.bounds, self.seed, epoch)
        rows, copy = self.rows.numpy()[order], self._copy[order]
        if self.views is None:
            view = epoch + _COPY * copy
        else:
            start = random.bits(self.view_seed, rows, 0, (random.VIEW,))[:, 0] % np.uint64(self.views)
            view = (epoch + start.astype(np.int64) + copy) % self.views
        return torch.from_numpy(rows), torch.from_numpy(view)


def _bucketed(
    order: np.ndarray, lengths: np.ndarray, bounds: Sequence[tuple[int, int]], seed: int, epoch: int
) -> np.ndarray:
    """`order` [n] with rows of like length in a batch: sorted within windows of batches, whose order is drawn anew."""
    out = order.copy()
    full = len(bounds) - 1  # the last batch, which may be smaller, stays as it was drawn
    for first in range(0, full, _WINDOW):
        window = bounds[first : min(first + _WINDOW, full)]
        a, b = window[0][0], window[-1][1]
        part = order[a:b][np.argsort(lengths[order[a:b]], kind="stable")].reshape(len(window), -1)
        key = random.bits(seed, np.arange(len(window)), epoch, (random.BUCKET, first))[:, 0]
        out[a:b] = part[np.argsort(key, kind="stable")].reshape(-1)
    return out


def _copies(rows: np.ndarray) -> np.ndarray:
    """How many times each entry already occurred before it: int64 [n]."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    counts = np.diff(np.r_[first, len(rows)])
    copy = np.empty(len(rows), dtype=np.int64)
    copy[order] = np.arange(len(rows)) - np.repeat(first, counts)
    return copy
