"""Rows held out by time or by group: the last ones, whole groups, and what folds and bags make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from problems import lab, told
from sftc import data
from sftc.build import parts
from sftc.data.apart import Apart
from sftc.errors import Refused
from sftc.store import Run

ROWS = 60


def write(path: Path, header: str = "when,size,who,y", **cells) -> Path:
    """Days in no order, five rows of each of twelve persons."""
    made = {
        "when": [f"2024-03-{1 + i * 7 % 30:02}" for i in range(ROWS)],
        "size": [f"{i * 37 % 101}.5" for i in range(ROWS)],
        "who": [f"p{i * 5 % 12}" for i in range(ROWS)],
        "y": [f"{i * 13 % 59}.25" for i in range(ROWS)],
    } | cells
    rows = zip(*(made[name] for name in header.split(",")), strict=True)
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    return path


def built(path: Path, **keys) -> data.Data:
    return data.build({"name": "tabular", "root": str(path), **keys})


def test_the_last_rows_are_test_and_those_before_them_val(tmp_path):
    d = built(write(tmp_path / "a.csv"), order_by="when", val_share=0.25, split_seed=7)
    day = torch.tensor([1 + i * 7 % 30 for i in range(ROWS)])
    train, val, test = (d.splits[s].rows for s in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [36, 12, 12]
    assert day[train].max() <= day[val].min() <= day[val].max() <= day[test].min()
    expected = sorted(range(ROWS), key=lambda i: (int(day[i]), i))  # of one day as they stand in the file
    assert (train.tolist(), val.tolist()) == (sorted(expected[:36]), sorted(expected[36:48]))
    again = built(tmp_path / "a.csv", order_by="when", val_share=0.25, split_seed=8)
    assert torch.equal(again.splits["test"].rows, test)
    assert any("test: the last 12 rows by when" in n for n in d.notes)
    assert d.form.about["columns"][0]["name"] == "when"  # still read by models
    by_number = built(tmp_path / "a.csv", order_by="size", drop=["size"])
    size = torch.tensor([i * 37 % 101 for i in range(ROWS)])
    assert size[by_number.splits["test"].rows].min() > size[by_number.splits["train"].rows].max()
    assert "size" not in [c["name"] for c in by_number.form.about["columns"]]


def test_a_group_stays_in_one_split_and_is_not_read(tmp_path):
    d = built(write(tmp_path / "a.csv"), groups="who", val_share=0.2, test_share=0.25)
    who = torch.tensor([i * 5 % 12 for i in range(ROWS)])
    parts_of = [set(who[s.rows].tolist()) for s in d.splits.values()]
    assert [len(p) for p in parts_of] == [7, 2, 3]
    assert set.union(*parts_of) == set(range(12))
    assert sum(len(s.rows) for s in d.splits.values()) == ROWS
    assert [c["name"] for c in d.form.about["columns"]] == ["when", "when weekday", "size"]
    other = built(tmp_path / "a.csv", groups="who", split_seed=1)
    assert not torch.equal(other.splits["test"].rows, d.splits["test"].rows)
    assert any("test: 15 rows, all of 3 groups of who" in n for n in d.notes)


def test_a_group_that_is_nearly_all_rows_leaves_both_sides_some():
    groups = torch.tensor([0] * 50 + [1, 1, 2])
    for seed in range(5):
        taken = Apart("who", groups=groups).taken(torch.arange(53), 0.2, seed, 1)
        assert 0 < len(taken) < 53
        assert len(set(groups[taken].tolist())) + len(set(groups.tolist()) - set(groups[taken].tolist())) == 3


@pytest.mark.parametrize(
    ("cells", "keys", "says"),
    [
        ({}, {"order_by": "wen"}, "data.order_by: no column wen; did you mean 'when'"),
        ({}, {"groups": "whose"}, "data.groups: no column whose"),
        ({}, {"order_by": "who"}, "row 0 says 'p0', which is no date and no number"),
        ({"when": ["", *["2024-01-01"] * (ROWS - 1)]}, {"order_by": "when"}, "row 0 says nothing, which is no date"),
        ({"who": ["a", "", *["b"] * (ROWS - 2)]}, {"groups": "who"}, "row 1 says nothing; every row needs its group"),
        ({"who": ["a", *["b"] * (ROWS - 1)]}, {"groups": "who"}, "has 2 groups; train, val and test need one each"),
        ({}, {"groups": "y"}, "data.groups=y is the target"),
        ({}, {"groups": "who", "order_by": "when"}, "two ways to hold rows out: choose one"),
    ],
)
def test_what_cannot_be_held_apart_is_refused_in_one_line(tmp_path, cells, keys, says):
    with pytest.raises(Refused, match=says) as error:
        built(write(tmp_path / "a.csv", **cells), **keys)
    assert "\n" not in str(error.value)


def test_an_order_beside_splits_of_their_own(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.csv")
    with pytest.raises(Refused, match="has val and test of its own: leave it out"):
        built(tmp_path, order_by="when")
    assert len(built(tmp_path, groups="who").splits["train"].rows) == ROWS


def test_folds_and_bags_keep_groups_together(tmp_path):
    root = f"data.root={write(tmp_path / 'a.csv')}"
    more = ("data=tabular", root, "data.groups=who", "data.limit=null", "epochs=1", "strategy=ensemble", "strategy.n=3")
    more = (*more, "fuse@strategy.fuse=mean")
    who = torch.tensor([i * 5 % 12 for i in range(ROWS)])
    run = told(tmp_path / "folds", *more, "strategy.members=folds")
    learned = [set(who[Run.open(run.path / f"members/model0-fold{k}").rows_of("train")].tolist()) for k in range(3)]
    assert [len(some) for some in learned] == [6, 6, 6]
    assert all(sum(person in some for some in learned) == 2 for person in set.union(*learned))
    home = lab(tmp_path / "bags", *more, "strategy.members=bagging")
    parts.strategy(home.run.config).run(home)
    each = home.run.result["out_of_bag"]["members"]
    assert all(row["rows"] % 5 == 0 and 0 < row["rows"] < 45 for row in each.values())  # of 45 rows, whole groups
    with pytest.raises(Refused, match=r"strategy\.n=30 folds of 9 groups"):
        told(tmp_path / "many", *more, "strategy.members=folds", "strategy.n=30")
