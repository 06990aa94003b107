"""The random table: a pure function of (seed, row, view, column), even, and without visible structure."""

from __future__ import annotations

import numpy as np
import pytest

from sftc.data import random


def test_known_values_stay_for_ever():
    """Stored runs and cached logits depend on these numbers; to change them, raise augment.VERSION."""
    assert random.bits(0, 0)[0, 0] == 0x568A9B0B1A2C05EC
    assert random.bits(3, 41, 7, (5,))[0, 0] == 0xD8F4146CFA71EC76
    assert random.order(0, 1, 8).tolist() == [5, 1, 4, 0, 6, 7, 2, 3]


def test_a_cell_does_not_depend_on_which_others_are_looked_up():
    rows = np.array([7, 3, 900_000_000_000])
    all_of_it = random.uniform(5, rows, np.array([0, 1, 2]), (2, 4, 60))
    assert random.uniform(5, np.array([3]), np.array([1]), (4,))[0, 0] == all_of_it[1, 1]
    assert random.uniform(5, rows, 2, (60,))[2, 0] == all_of_it[2, 2]


@pytest.mark.parametrize("what", ["seed", "row", "view", "column"])
def test_uniform_and_uncorrelated_along_every_axis(what: str):
    n = np.arange(20_000)
    if what == "seed":
        u = np.array([random.uniform(s, 3)[0, 0] for s in range(4000)])
    elif what == "column":
        u = random.uniform(1, 2, 3, range(20_000))[0]
    else:
        u = random.uniform(1, **{"row": 5, "view": 5} | {what: n})[:, 0]
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - len(u) / 20) ** 2 / (len(u) / 20)).sum() < 45  # chi squared, 19 degrees: p = 0.0007
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.05


def test_negative_and_huge_seeds_are_seeds():
    assert len({random.bits(s, 0)[0, 0] for s in (0, -1, 1, 2**64 - 2, 2**63)}) == 5


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [random.order(s, e, 100).tolist() for s in (0, 1) for e in (0, 1)]
    assert all(sorted(o) == list(range(100)) for o in orders)
    assert len({tuple(o) for o in orders}) == 4
    assert random.order(0, 1, 100).tolist() == orders[1]
