"""Stacking class by class against the same written out with loops: gaps, unknown labels, blocks, folds, the penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusing import TASKS, team
from sftc.errors import Refused
from sftc.fusion import classwise, make
from sftc.fusion.folds import assign


def solved(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    penalty = np.diag([*[alpha] * (x.shape[1] - 1), 1e-6])
    return np.linalg.solve(x.T @ x + penalty, x.T @ y)


def written_out(
    scores: np.ndarray, goal: np.ndarray, fold: np.ndarray, alpha: float | None
) -> tuple[np.ndarray, float]:
    """[C, M + 1] from scores [M, N, C] and what is true [N, C], NaN where unknown; and the penalty."""
    rows = ~np.isnan(goal).all(1) & ~np.isnan(scores).all((0, 2))
    scores, goal, fold = scores[:, rows], goal[rows], fold[rows]
    mean = np.nanmean(scores, 0)
    filled = np.where(np.isnan(scores), mean, scores)
    parts = []
    for c in range(goal.shape[1]):
        known = ~np.isnan(goal[:, c])
        x = np.concatenate([filled[:, known, c].T, np.ones((known.sum(), 1))], 1)
        parts.append((x, (goal - mean)[known, c], fold[known]))
    if alpha is None:
        best = np.inf
        for one in classwise.ALPHAS:
            loss = 0.0
            for x, y, of in parts:
                for k in np.unique(fold):
                    w = solved(x[of != k], y[of != k], one)
                    loss += ((x[of == k] @ w - y[of == k]) ** 2).sum()
            if loss >= best:
                break
            best, alpha = loss, one
    assert alpha is not None
    return np.stack([solved(x, y, alpha) for x, y, _ in parts]), alpha


def troubled(kind: str, rows: int = 240):
    """Gaps of one and of all, rows and labels that are not known, and a last fold of which nothing is."""
    scores, target = team(kind, rows=rows)
    scores = scores.double()
    g = torch.Generator().manual_seed(0)
    wrong = torch.rand(rows, generator=g) < 0.5  # or no penalty would be small enough
    target[wrong] = target[torch.randperm(rows, generator=g)][wrong]
    fold = assign(TASKS[kind], target, 5)
    target[::11] = -1 if kind == "classes" else torch.nan
    target[fold == 4] = -1 if kind == "classes" else torch.nan
    scores[1, 20:90] = scores[:, 100] = torch.nan
    goal = target
    if kind == "classes":
        goal = torch.nn.functional.one_hot(target.clamp_min(0), 3).double()
        goal[target < 0] = torch.nan
    else:
        target[120:160, 1] = torch.nan
    return scores, target, fold, goal.double().numpy()


@pytest.mark.parametrize("kind", ["classes", "labels"])
@pytest.mark.parametrize("block", [1, 1 << 23])
def test_it_is_what_loops_give(monkeypatch, kind, block):
    monkeypatch.setattr(classwise, "BLOCK", block)  # 1: a class at a time
    scores, target, fold, goal = troubled(kind)
    whole, *parts = classwise.fit_folds(TASKS[kind], scores, target, fold)
    chosen = set()
    for k, state in enumerate([whole, *parts], -1):
        others = goal.copy()
        others[fold.numpy() == k] = np.nan
        want, alpha = written_out(scores.numpy(), others, fold.numpy(), None)
        assert np.allclose(state["deviation"].T, want[:, :-1], atol=1e-8)
        assert np.allclose(state["bias"], want[:, -1], atol=1e-8)
        chosen.add(alpha)
    assert not chosen & {classwise.ALPHAS[0], classwise.ALPHAS[-1]}  # neither end, or stopping late would not show


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_who_did_not_answer_is_taken_to_say_what_the_others_say(kind):
    scores, target, _, _ = troubled(kind)
    fuser = make("stacking", TASKS[kind], columns=0, alpha=1.0)
    fuser.fit(scores, target)
    filled = torch.where(scores.isnan(), scores.nanmean(0), scores)
    torch.testing.assert_close(fuser.apply(scores), fuser.apply(filled), equal_nan=True, rtol=0, atol=1e-12)


def test_of_two_folds_none_can_be_the_inner_ones_of_the_other():
    scores, target, _, _ = troubled("classes")
    fold = torch.arange(len(target)) % 2
    parts = make("stacking", TASKS["classes"], columns=0).fit_folds(scores, target, fold)
    for k, part in enumerate(parts):
        alone = make("stacking", TASKS["classes"], columns=0)
        alone.fit(scores, target.masked_fill(fold == k, -1))
        assert torch.equal(part.part("deviation"), alone.part("deviation"))
        assert float(part.part("deviation").abs().max()) > 0.01  # a penalty was found, not the strongest one taken


def test_features_have_no_place_in_folds_either():
    scores, target, fold, _ = troubled("classes")
    with pytest.raises(Refused, match="features have no place"):
        make("stacking", TASKS["classes"], columns=0).fit_folds(scores, target, fold, [torch.zeros(len(target), 2)])


def test_products_that_rounding_made_indefinite_are_solved_all_the_same():
    g = torch.Generator().manual_seed(0)
    gram = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    gram[1, 0, 0] = -5.0  # no sum of squares is that
    cross = torch.randn(3, 4, dtype=torch.float64, generator=g)
    out = classwise._solve(gram, cross, 1.0)
    penalty = torch.tensor([1.0, 1.0, 1.0, 1e-6], dtype=torch.float64).diag()
    assert torch.allclose(((gram + penalty) @ out[..., None])[..., 0], cross, atol=1e-12)
