"""Randomness as a table: numbers that are a pure function of (seed, row, view, column).

A counter-based generator (splitmix64, Steele et al. 2014): nothing is drawn from a stream, so no worker,
batch size, process or earlier epoch can change what a row gets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1

# Columns of the table that are not augmentation's. Fixed numbers: no choice shifts what another one draws.
ORDER, SPLIT_TEST, SPLIT_VAL, LIMIT = range(100, 104)
VIEW, BUCKET = 105, 106
SECOND = 1 << 61  # added to a view: another one of the same row


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _words(values: np.ndarray | int) -> np.ndarray:
    if isinstance(values, int):
        return np.array([values & _MASK], dtype=np.uint64)
    return np.asarray(values).astype(np.uint64, casting="unsafe")


def bits(seed: int, row: np.ndarray | int, view: np.ndarray | int = 0, columns: Sequence[int] = (0,)) -> np.ndarray:
    """Random words, uint64 [n, len(columns)]; `row` and `view` are integers [n], or one number for all."""
    key = _mix(_words(seed) + _GOLDEN)
    key = _mix(key ^ _mix(_words(row) + _GOLDEN))
    key = _mix(key ^ _mix(_words(view) + _GOLDEN))
    steps = np.asarray(columns, dtype=np.uint64) + np.uint64(1)
    return _mix(key[:, None] + steps * _GOLDEN)


def uniform(seed: int, row: np.ndarray | int, view: np.ndarray | int = 0, columns: Sequence[int] = (0,)) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [n, len(columns)]."""
    return (bits(seed, row, view, columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of `n` positions in which an epoch visits them, int64 [n]."""
    return np.argsort(bits(seed, np.arange(n), epoch, (ORDER,))[:, 0], kind="stable")
