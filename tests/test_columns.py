"""Rows of one table told as another's: a model answers the same, however the columns lie."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sftc.columns import Column, coded, match, other, read, told
from sftc.errors import Refused
from sftc.models.adapt import ignored, rows
from sftc.types import Form

THEIRS = [
    Column("age", "numeric"),
    Column("city", "categorical", False, ["Bonn", "Rome"]),
    Column("id", "hash", buckets=50),
    Column("day", "date", True),
]
MINE = [
    Column("id", "hash", buckets=50),
    Column("more", "boolean"),
    Column("city", "categorical", True, ["Oslo", "Rome", "Bonn"]),
    Column("day", "date"),
    Column("age", "numeric"),
]


def facts(columns, mean, std):
    form = Form((len(columns),), about=told(columns))
    return SimpleNamespace(form=form, shape=form.shape, input_mean=torch.tensor(mean), input_std=torch.tensor(std))


HERE = facts(MINE, [0.0, 0.5, 0, 100, 40], [1.0, 0.5, 1, 10, 20])
THERE = facts(THEIRS, [30.0, 0, 0, 120], [10.0, 1, 1, 5])


def test_rows_are_told_by_name_scale_and_word():
    move = rows(HERE, THERE, "teacher")
    assert move is not None
    mine = torch.tensor([[7.0, 1, 3, 0, 1], [0, -1, 1, float("nan"), 0], [50, 1, 0, 1, -0.5]])
    expected = [
        [3.0, 1, 7, -4],  # age 60, Bonn, bucket 7, day 100
        [1.0, 0, 0, float("nan")],  # Oslo, which they never saw; a missing day stays one
        [0.0, 0, 50, -2],
    ]
    torch.testing.assert_close(move(mine), torch.tensor(expected), equal_nan=True)
    assert ignored(HERE, THERE) == ["more"]
    assert rows(THERE, THERE, "teacher") is None


def test_without_names_only_the_scale_is_told():
    def nameless(mean):
        return SimpleNamespace(form=Form((1,)), shape=(1,), input_mean=torch.tensor([mean]), input_std=torch.ones(1))

    move = rows(nameless(3.0), nameless(1.0), "teacher")
    assert move is not None
    assert move(torch.tensor([[0.5]])).tolist() == [[2.5]]
    with pytest.raises(Refused, match="shape"):
        rows(nameless(1.0), THERE, "teacher")


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (MINE[:4], "teacher reads column age, which the data does not have"),
        ([*MINE[:4], Column("age", "categorical", values=["1"])], "column age as numeric.*data.columns.age=numeric"),
        ([Column("id", "hash", buckets=9), *MINE[1:]], "column id as hash of 50, the data has it as hash of 9"),
        ([*MINE[:2], Column("city", "hash", buckets=50), *MINE[3:]], "column city as categorical"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(mine, says):
    with pytest.raises(Refused, match=says):
        match(mine, THEIRS, "teacher")


def test_what_two_tables_differ_in():
    assert other(told(MINE), told(MINE)) is None
    assert other(told(MINE), {}) is None
    assert other(told(MINE), told(THEIRS)) == "column id stands where column age stood"
    assert other(told(MINE[:3]), told(MINE)) == "3 columns, not 5"
    codes = [*THEIRS[:1], Column("city", "categorical", False, ["Bonn"]), *THEIRS[2:]]
    assert other(told(codes), told(THEIRS)) == "column city is categorical, was categorical of other codes"


def test_words_become_buckets():
    _, lookup = match([Column("id", "categorical", values=["u1", "u2"])], [THEIRS[2]], "teacher")
    assert lookup[0].tolist() == [0, THEIRS[2].code("u1"), THEIRS[2].code("u2")]
    assert len({THEIRS[2].code(f"u{i}") for i in range(400)}) == 50


def test_columns_survive_being_told():
    for columns in (MINE, THEIRS):
        assert [c.plain() for c in read(told(columns), len(columns))] == [c.plain() for c in columns]
    assert coded(told(MINE), 5).tolist() == [True, False, True, False, False]
    assert coded({}, 2).tolist() == [False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"kind": "picture"},
        {"kind": ["numeric"]},
        {"missing": 1},
        {"values": ["a"]},
        {"kind": "categorical", "values": ["a", "a"]},
        {"kind": "categorical", "values": [1]},
        {"kind": "categorical", "values": 7},
        {"kind": "hash"},
        {"kind": "hash", "buckets": 10**12},
        {"kind": "hash", "buckets": True},
        {"more": 1},
    ],
)
def test_columns_that_are_none(change):
    node = {"name": "a", "kind": "numeric", "missing": False} | change
    with pytest.raises(ValueError):  # noqa: PT011, each in its own words
        read({"columns": [node]}, 1)


@pytest.mark.parametrize("nodes", [7, None, [], [7], ["a"], [THEIRS[0].plain()] * 2])
def test_lists_of_columns_that_are_none(nodes):
    with pytest.raises(ValueError):  # noqa: PT011
        read({"columns": nodes}, 2 if isinstance(nodes, list) and len(nodes) == 2 else 1)
