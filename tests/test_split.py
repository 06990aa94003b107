"""Carving, limits, classes and hidden labels: by split_seed and source row alone, evenly from every class."""

from __future__ import annotations

import pytest
import torch

from sftc import data
from sftc.data import split
from sftc.errors import Refused


def rows(spec: dict, name: str) -> set[int]:
    return set(data.build(spec).splits[name].rows.tolist())


def test_spread_is_even_nested_and_sorted():
    target = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    every = torch.arange(100)
    small = split.spread(every, target, 20, 0, 1)
    large = split.spread(every, target, 50, 0, 1)
    assert torch.bincount(target[small]).tolist() == [12, 6, 2]
    assert set(small.tolist()) < set(large.tolist())
    assert small.tolist() == sorted(small.tolist())
    assert not torch.equal(small, split.spread(every, target, 20, 1, 1))


def test_splits_are_disjoint_complete_stratified_and_of_the_split_seed():
    d = data.build({"name": "digits"})
    parts = [s.rows for s in d.splits.values()]
    assert sorted(torch.cat(parts).tolist()) == list(range(1797))
    assert len(d.splits["test"].rows) == round(0.2 * 1797)
    for s in d.splits.values():
        counts = torch.bincount(s.target[s.rows], minlength=10) / len(s.rows)
        assert (counts - 0.1).abs().max() < 0.01
    assert rows({"name": "digits", "split_seed": 1}, "val") != rows({"name": "digits"}, "val")


@pytest.mark.parametrize(
    "change", [{"limit": 40}, {"classes": [4, 2]}, {"unlabeled": 0.3}, {"classes": [4, 2], "limit": 9}]
)
def test_no_choice_moves_a_row_to_another_split(change: dict):
    whole, mine = data.build({"name": "digits"}), data.build({"name": "digits"} | change)
    for name in ("train", "val", "test"):
        assert set(mine.splits[name].rows.tolist()) <= set(whole.splits[name].rows.tolist())
    if "limit" in change:
        assert len(mine.splits["train"].rows) == change["limit"]
        assert len(mine.splits["val"].rows) >= 20


def test_limits():
    digits = {"name": "digits"}
    n = len(rows(digits, "train"))
    assert rows(digits | {"limit": 10_000}, "train") == rows(digits, "train")
    assert len(rows(digits | {"limit": 0.25}, "train")) == round(0.25 * n)
    assert rows(digits | {"limit": 50}, "train") < rows(digits | {"limit": 100}, "train")
    small = data.build(digits | {"eval_limit": 30})
    assert [len(small.splits[s].rows) for s in ("train", "val", "test")] == [n, 30, 30]


def test_classes_by_name_or_number_in_the_given_order():
    d = data.build({"name": "fake", "classes": ["class3", 1]})
    assert d.class_names == ["class3", "class1"]
    train = d.splits["train"]
    raw = train.table.target[train.rows]
    assert set(raw.tolist()) == {1, 3}
    assert torch.equal(train.target[train.rows], (raw == 1).long())
    labels = data.build({"name": "fake", "kind": "labels", "classes": [2, 0]})
    assert torch.equal(labels.splits["val"].target, labels.splits["val"].table.target[:, [2, 0]])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["class1", "clas2"], "no class clas2; did you mean 'class2'"),
        ([0, 9], "no class 9.*classes: class0, class1"),
        ([1, "class1"], "names a class twice"),
        ([1], "nothing to tell apart"),
    ],
)
def test_wrong_classes(classes: list, words: str):
    with pytest.raises(Refused, match=words):
        data.build({"name": "fake", "classes": classes})


def test_unlabelled_source_rows_survive_relabelling():
    target = torch.tensor([0, 1, 2, -1])
    new, kept = split.relabelled(target, torch.arange(4), "classes", [2, 0], 3)
    assert kept.tolist() == [0, 2, 3]
    assert new[kept].tolist() == [1, 0, -1]


def test_hidden_labels_are_of_train_only_and_nested():
    d = data.build({"name": "digits", "unlabeled": 0.8})
    for name, share in (("train", 0.8), ("val", 0), ("test", 0)):
        s = d.splits[name]
        assert (s.target[s.rows] < 0).float().mean().item() == pytest.approx(share, abs=0.01)
    less = data.build({"name": "digits", "unlabeled": 0.4}).splits["train"]
    more = d.splits["train"]
    assert ((less.target < 0) <= (more.target < 0)).all()
    values = data.build({"name": "diabetes", "unlabeled": 0.5}).splits["train"]
    assert values.target[values.rows].isnan().any(1).float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_as_many_labels_are_seen_as_a_limit_would_keep_rows_and_the_same_ones(name: str):
    few = data.build({"name": name, "limit": 100}).splits["train"]
    rows = len(data.build({"name": name}).splits["train"].rows)
    all_rows = data.build({"name": name, "unlabeled": 1 - 100 / rows}).splits["train"]
    target = all_rows.target[all_rows.rows]
    seen = target >= 0 if target.ndim == 1 else ~target.isnan().any(1)
    assert all_rows.rows[seen].equal(few.rows)


def test_shares_that_leave_nothing():
    with pytest.raises(Refused, match=r"data\.val_share=0\.01 of 48 rows leaves a split with no rows"):
        data.build({"name": "fake", "count": 60, "val_share": 0.01})
    none = data.build({"name": "digits", "test_share": 0})
    assert list(none.splits) == ["train", "val"]


def test_class_weights():
    spec = {"name": "fake", "limit": 100}
    d = data.build(spec | {"class_weights": "balanced"})
    assert d.class_counts is not None
    assert d.class_weights is not None
    torch.testing.assert_close(d.class_weights, 100 / (4 * d.class_counts.float()))
    assert data.build(spec).class_weights is None
    given = data.build(spec | {"class_weights": [1, 2, 3, 4]}).class_weights
    assert given is not None
    assert given.tolist() == [1, 2, 3, 4]
    with pytest.raises(Refused, match="has 2 numbers for 4 classes"):
        data.build(spec | {"class_weights": [1, 2]})
    labels = data.build(spec | {"kind": "labels", "class_weights": "balanced"})
    assert labels.class_counts is not None
    torch.testing.assert_close(labels.class_weights, (100 - labels.class_counts) / labels.class_counts)
    half = data.build(spec | {"kind": "labels", "class_weights": "balanced", "unlabeled": 0.5})
    assert half.class_counts is not None
    torch.testing.assert_close(half.class_weights, (50 - half.class_counts) / half.class_counts)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_no_label_left(kind: str):
    with pytest.raises(Refused, match=r"no training row has a label \(data\.unlabeled=0\.99 of 5 rows"):
        data.build({"name": "fake", "kind": kind, "limit": 5, "unlabeled": 0.99})
