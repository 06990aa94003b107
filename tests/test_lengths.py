"""Rows of different lengths: batches as long as their longest row, made of rows of like length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sftc.data import Augment
from sftc.data.rows import Data, Split
from sftc.types import Form

CPU = torch.device("cpu")
ROWS, SIZE = 1003, 10


class Ragged:
    """Row r is the byte 1 + r % 250, repeated `lengths[r]` times."""

    shape = ()
    nbytes = ROWS * 50
    host = True

    def __init__(self) -> None:
        self.lengths = torch.from_numpy(np.random.default_rng(0).integers(1, 100, ROWS))
        self.target = torch.arange(ROWS) % 3

    def read(self, rows, lost=None):
        out = torch.zeros(len(rows), int(self.lengths[rows].max()), dtype=torch.uint8)
        for i, row in enumerate(rows.tolist()):
            out[i, : self.lengths[row]] = 1 + row % 250
        return out

    def fingerprint(self) -> str:
        return "ragged"


@pytest.fixture(scope="module")
def data():
    table = Ragged()
    rows = {"train": torch.arange(900), "val": torch.arange(900, ROWS)}
    splits = {name: Split(name, lambda r=r: (table, r, table.target)) for name, r in rows.items()}
    return Data(name="ragged", kind="classes", class_names=["a", "b", "c"], splits=splits, augment=Augment())


def take(data, epoch=0, start=0, seed=0, split="train", train=True, rows=None):
    return list(data.source(split, SIZE, train=train, seed=seed, device=CPU, rows=rows).epoch(epoch, start))


def test_every_row_comes_once_and_whole(data):
    table = data.splits["train"].table
    batches = take(data)
    assert torch.cat([b.index for b in batches]).sort()[0].tolist() == list(range(900))
    for b in batches:
        lengths = table.lengths[b.index]
        assert b.inputs.shape == (SIZE, int(lengths.max()))
        assert torch.equal((b.inputs > 0).sum(1), lengths)
        assert torch.equal(b.inputs[:, 0], (1 + b.index % 250).to(torch.uint8))
        assert torch.equal(b.target, b.index % 3)


def test_batches_hold_rows_of_like_length_in_an_order_of_their_own(data):
    lengths = data.splits["train"].table.lengths
    batches = take(data)
    asked = sum(b.inputs.numel() for b in batches)
    assert asked < 1.1 * int(lengths[:900].sum())  # drawn at random it would be some 1.8 times
    sizes = [b.inputs.shape[1] for b in batches]
    assert sizes != sorted(sizes)
    climbs = sum(a < b for a, b in itertools.pairwise(sizes))
    assert 25 < climbs < 65  # of 89 steps from batch to batch, about half


def test_epochs_differ_and_can_be_entered_at_any_step(data):
    def indices(batches):
        return [b.index.tolist() for b in batches]

    whole = indices(take(data, 2))
    assert indices(take(data, 2, 37)) == whole[37:]
    assert indices(take(data, 2)) == whole
    assert indices(take(data, 3)) != whole != indices(take(data, 2, seed=1))


def test_repeated_rows_and_prediction_in_order(data):
    drawn = torch.tensor([5, 5, 5, 7, 899, 0, 0, 44, 17, 300, 301, 302, 302])
    got = torch.cat([b.index for b in take(data, rows=drawn)])
    assert got.sort()[0].tolist() == drawn.sort()[0].tolist()
    assert torch.cat([b.index for b in take(data, split="val", train=False)]).tolist() == list(range(900, ROWS))


def test_the_form_of_the_rows_is_told(data):
    assert data.form.kind == "text"
    assert data.form.blank(3).dtype == torch.uint8
    assert Form((3, 8, 8)).kind == "picture"
    assert Form.of((4,)).plain() == {"shape": [4], "form": "table", "about": {}}
