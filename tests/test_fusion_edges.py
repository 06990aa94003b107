"""Ties, gaps and unlabelled rows of single rules, where only one line of code knows about them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusing import TASKS, team
from sftc.fusion import make
from sftc.fusion.cascade import _lowest_bar
from sftc.fusion.measures import first, row_values
from sftc.fusion.pooling import pool
from sftc.strategies.panel import Panel
from sftc.types import Predictions

CLASSES, LABELS = TASKS["classes"], TASKS["labels"]


def test_of_equal_scores_the_first_class_is_named():
    assert first(torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])).tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_a_row_without_an_answer_is_neither_right_nor_wrong(kind):
    scores, target = team(kind, members=1, rows=6)
    scores[0, 2] = torch.nan
    assert row_values(TASKS[kind], "accuracy", scores[0], target).isnan().tolist() == [i == 2 for i in range(6)]


def test_weights_that_are_all_zero_are_all_alike():
    scores, _ = team("classes", members=2)
    torch.testing.assert_close(pool(scores, torch.zeros(2)), scores.double().mean(0))


def test_a_weighted_vote_falls_back_on_who_has_no_weight():
    scores = torch.tensor([[[0.1, 0.2, 0.7], [torch.nan] * 3], [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]]])
    out = make("weighted_vote", CLASSES, weights=[1, 0]).apply(scores)
    assert out.argmax(1).tolist() == [2, 1]
    assert not bool(out.isnan().any())


def test_the_best_without_a_fold_is_that_of_the_others():
    y = torch.zeros(6, dtype=torch.long)
    right, wrong = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.1])
    one = torch.stack([right] * 3 + [wrong] * 3)
    two = torch.stack([wrong] * 3 + [right] * 2 + [wrong])
    none = torch.full_like(one, torch.nan)  # and never who said nothing
    fuser = make("best", CLASSES)
    parts = fuser.fit_folds(torch.stack([none, one, two]), y, torch.arange(6) // 3)
    assert [f.part("weights").tolist() for f in (fuser, *parts)] == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_rows_of_one_confidence_are_answered_together():
    sure, harm = torch.tensor([0.9, 0.9, 0.5]).double(), torch.tensor([0.0, 1.0, 0.0]).double()
    assert _lowest_bar(sure, harm, 0.5) == float("inf")
    assert _lowest_bar(sure, harm, 1.0) == 0.5


def test_a_cascade_goes_on_without_who_did_not_answer():
    scores, target = team("classes", members=2)
    fuser = make("cascade", CLASSES, costs=[1, 2])
    fuser.fit(scores, target)
    some = scores.clone()
    some[0, :10] = torch.nan
    torch.testing.assert_close(fuser.apply(some)[:10], scores[1, :10])


def test_unlabelled_rows_give_a_cascade_no_more_to_lose():
    scores, target = team("classes", members=3)
    scores = scores.flip(0)  # the worst is the cheapest
    twice = torch.cat([target, torch.full_like(target, -1)])
    one, two = (make("cascade", CLASSES, costs=[1, 2, 3], slack=0.05) for _ in range(2))
    one.fit(scores, target)
    two.fit(torch.cat([scores, scores], 1), twice)
    assert torch.equal(one.part("bars"), two.part("bars"))


def test_a_panel_is_in_the_order_of_folds_and_goes_back():
    scores, target = team("classes", members=2, rows=50)
    row = torch.arange(50) // 2
    voices: list[Any] = [
        SimpleNamespace(found={s: Predictions(member, target, row) for s in ("val", "test")}) for member in scores
    ]
    run = SimpleNamespace(groups=lambda: None, rows_of=lambda split: None)
    lab: Any = SimpleNamespace(task=CLASSES, split_seed=0, run=run)
    panel = Panel(lab, voices)
    assert panel.fold.tolist() == sorted(panel.fold.tolist())
    assert torch.equal(panel.ordered(target), panel.target)
    for m in range(2):
        assert torch.equal(panel.ordered(scores[m]), panel.scores["val"][m])
        assert torch.equal(panel.restored(panel.scores["val"][m]), scores[m])
    assert torch.equal(panel.scores["test"], scores)
    fold = panel.restored(panel.fold)
    assert torch.equal(fold[::2], fold[1::2])  # both answers of a row
    lab.split_seed = 1
    assert not torch.equal(fold, (other := Panel(lab, voices)).restored(other.fold))
