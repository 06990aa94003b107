"""Tables, splits and Data: what is read when, what identifies it, and that every row keeps its number."""

from __future__ import annotations

import pytest
import torch

from sftc import data
from sftc.data.rows import ArrayTable, Split, digest
from sftc.errors import Refused

CPU = torch.device("cpu")


def rows_of(source, epoch: int = 0) -> list[int]:
    return torch.cat([b.index for b in source.epoch(epoch)]).tolist()


def test_a_split_is_loaded_once_and_only_when_looked_at():
    loads = []
    table = ArrayTable(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4).long())

    def load():
        loads.append(1)
        return table, torch.arange(2), table.target

    split = Split("test", load)
    assert not loads
    assert split.rows.tolist() == [0, 1]
    assert split.table is table
    assert len(loads) == 1


def test_a_split_without_rows_is_refused():
    table = ArrayTable(torch.zeros(4, 1), torch.zeros(4).long())
    with pytest.raises(Refused, match="the val split has no rows"):
        _ = Split("val", lambda: (table, torch.arange(0), table.target)).rows


def test_digest_sees_values_dtype_and_shape():
    x = torch.arange(4)
    others = [x + 1, x.int(), x.view(2, 2), x[:3]]
    assert len({digest(t) for t in [x, *others]}) == 5
    assert digest(x) == digest(x.clone())


def test_fingerprint_follows_content_and_split_only():
    spec = {"name": "digits"}
    mine = data.build(spec).fingerprint
    assert data.build(spec | {"augment": {"crop": 1}, "cache": "none", "workers": 2}).fingerprint == mine
    changes = (
        {"limit": 100},
        {"classes": [0, 1]},
        {"split_seed": 1},
        {"unlabeled": 0.5},
        {"size": 9},
        {"val_share": 0.2},
    )
    assert len({mine, *(data.build(spec | c).fingerprint for c in changes)}) == 1 + len(changes)


def test_sources_know_rows_by_their_source_number():
    d = data.build({"name": "digits", "classes": [3, 5]})
    table = d.splits["train"].table
    batch = next(iter(d.source("val", 8, train=False, seed=0, device=CPU).epoch(0)))
    assert torch.equal(batch.inputs, table.read(batch.index))
    assert set(table.target[batch.index].tolist()) == {3, 5}
    assert torch.equal(batch.target, (table.target[batch.index] == 5).long())
    assert batch.view.tolist() == [0] * 8
    val, train = set(d.splits["val"].rows.tolist()), set(d.splits["train"].rows.tolist())
    assert not val & train


def test_rows_must_be_of_the_split_and_may_repeat():
    d = data.build({"name": "digits", "limit": 50})
    mine = d.splits["train"].rows
    again = torch.cat((mine[:5], mine[:3]))
    assert sorted(rows_of(d.source("train", 4, train=True, seed=0, device=CPU, rows=again))) == sorted(again.tolist())
    assert rows_of(d.source("train", 4, train=False, seed=0, device=CPU, rows=again)) == again.tolist()
    with pytest.raises(ValueError, match="rows must be some of the 50 rows"):
        d.source("train", 4, train=True, seed=0, device=CPU, rows=d.splits["val"].rows)
    with pytest.raises(Refused, match="split=vel is not known; did you mean 'val'"):
        d.source("vel", 4, train=True, seed=0, device=CPU)


def test_tables_are_standardised_by_training_rows():
    d = data.build({"name": "diabetes"})
    batches = list(d.source("train", 64, train=True, seed=0, device=CPU).epoch(0))
    x, y = torch.cat([b.inputs for b in batches]), torch.cat([b.target for b in batches])
    assert x.dtype == torch.float32
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, unbiased=False) - 1).abs().max() < 1e-4
    torch.testing.assert_close(d.target_mean, y.mean(0))
    torch.testing.assert_close(d.target_std, y.std(0, unbiased=False))
    val = next(iter(d.source("val", 64, train=False, seed=0, device=CPU).epoch(0)))
    raw = d.splits["val"].table.read(val.index)
    torch.testing.assert_close(val.inputs, (raw - d.input_mean) / d.input_std)


def test_a_constant_column_stays_finite():
    from sftc.data.rows import _moments

    mean, std = _moments(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    assert mean.tolist() == [1, 3]
    assert std.tolist() == [1, 1]


def test_counts_and_facts():
    d = data.build({"name": "digits", "unlabeled": 0.5})
    labelled = d.splits["train"].target[d.splits["train"].rows] >= 0
    assert d.class_counts is not None
    assert int(d.class_counts.sum()) == int(labelled.sum()) == round(0.5 * len(labelled))
    assert (d.kind, d.out_dim, d.form.kind, d.shape) == ("classes", 10, "picture", (1, 8, 8))
    assert d.target_mean is None
    assert any(n.startswith("val: 0.1") for n in d.notes)
    labels = data.build({"name": "fake", "kind": "labels"})
    rows = labels.splits["train"].rows
    assert labels.class_counts is not None
    assert labels.class_counts.tolist() == labels.splits["train"].target[rows].sum(0).tolist()


def test_where_rows_are_held_is_said():
    d = data.build({"name": "digits"})
    d.source("train", 8, train=True, seed=0, device=CPU)
    d.source("train", 8, train=True, seed=1, device=CPU)
    assert [n for n in d.notes if n.startswith("train:")] == ["train: held in memory (0.1 MB)"]
