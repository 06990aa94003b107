"""Heads on scores and features against scikit-learn; the narrow form above 500 columns; gaps and rare classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusing import TASKS, rule, team
from sftc.errors import Refused
from sftc.fusion import classwise, heads, make
from sftc.fusion.measures import measure
from sftc.tasks import Classification, MultiLabel, Regression


def columns(scores: torch.Tensor) -> np.ndarray:
    """[N, M * C] log-probabilities, standardised."""
    x = scores.clamp_min(1e-7).log().movedim(0, 1).flatten(1).double().numpy()
    return (x - x.mean(0)) / x.std(0)


def test_logistic_stacking_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    scores, target = team("classes", rows=300)
    fuser = rule("stacking", "classes", alpha=0.5)
    fuser.fit(scores, target)
    expected = LogisticRegression(C=2.0, max_iter=300).fit(columns(scores), target).predict_proba(columns(scores))
    assert np.allclose(fuser.apply(scores), expected, atol=2e-3)


def test_two_classes_and_labels_are_logistic_regressions_too():
    from sklearn.linear_model import LogisticRegression

    scores, target = team("classes", rows=200)
    two = Classification(["a", "b"])
    scores, target = scores[:, target < 2, :2], target[target < 2]
    scores = scores / scores.sum(2, keepdim=True)
    fuser = make("stacking", two, alpha=1.0)
    fuser.fit(scores, target)
    expected = LogisticRegression(max_iter=300).fit(columns(scores), target).predict_proba(columns(scores))
    assert np.allclose(fuser.apply(scores), expected, atol=2e-3)
    scores, target = team("labels", rows=200)
    target[:50, 0] = torch.nan
    fuser = rule("stacking", "labels", alpha=1.0)
    fuser.fit(scores, target)
    x = scores.logit(1e-7).movedim(0, 1).flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(max_iter=300).fit(x[50:], target[50:, 0]).predict_proba(x)[:, 1]
    assert np.allclose(fuser.apply(scores)[:, 0], expected, atol=2e-3)


def test_values_are_stacked_by_ridge_in_their_own_units():
    from sklearn.linear_model import Ridge

    scores, target = team("values", rows=200)
    scale = torch.tensor([1000.0, 0.01])
    task = Regression(["u", "v"], mean=torch.tensor([5.0, 0.0]), std=scale)
    scores, target = scores * scale + 5, target * scale + 5
    fuser = make("stacking", task, alpha=3.0)
    fuser.fit(scores, target)
    x = scores.movedim(0, 1).flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    expected = Ridge(alpha=3.0).fit(x, target.double().numpy()).predict(x)
    assert np.allclose(fuser.apply(scores), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TASKS)
def test_a_small_mlp_is_scikit_learns(kind):
    scores, target = team(kind, rows=200)
    fuser = rule("stacking", kind, model="mlp", alpha=3.0)
    fuser.fit(scores, target)
    out = fuser.apply(scores)
    metric = "rmse" if kind == "values" else "accuracy"
    got, single = measure(TASKS[kind], metric, out, target), measure(TASKS[kind], metric, scores[0], target)
    assert got < single if kind == "values" else got > single
    assert set(fuser.state()) == {"w0", "b0", "w1", "b1"}


def test_the_penalty_is_chosen_on_held_out_rows(monkeypatch):
    noise = torch.rand(20, 90, 3, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.sum(2, keepdim=True)
    target = torch.randint(3, (90,), generator=torch.Generator().manual_seed(1))
    used = []
    once = heads._once
    monkeypatch.setattr(heads, "_once", lambda *a: used.append(a[-1]) or once(*a))
    fuser = make("stacking", TASKS["classes"])
    fuser.fit(noise, target)
    assert used[-1] == 1e3  # nothing to learn: as strong as there is
    scores, target = team("classes", rows=300)
    fuser.fit(scores, target)
    assert used[-1] < 1e3


def test_of_many_rows_some_choose_the_penalty_and_all_are_fitted_on(monkeypatch):
    scores, target = team("classes", rows=300)
    rows: list[int] = []
    once = heads._once
    monkeypatch.setattr(heads, "_once", lambda *a: (rows.append(len(a[2])), once(*a))[1])
    monkeypatch.setattr(heads, "JUDGES", 100)
    rule("stacking", "classes", alpha=None).fit(scores, target)
    assert rows[-1] == 300
    assert 60 <= min(rows[:-1]) <= max(rows[:-1]) <= 70


def test_features_stand_beside_scores_and_alone():
    scores, target = team("classes", members=2, rows=300)
    told = torch.nn.functional.one_hot(target, 3) + 0.3 * torch.randn(
        300, 3, generator=torch.Generator().manual_seed(2)
    )
    told[7] = torch.nan
    with_them, without = rule("stacking", "classes", 2), rule("stacking", "classes", 2)
    with_them.fit(scores, target, [told])
    without.fit(scores, target)
    better = measure(TASKS["classes"], "nll", with_them.apply(scores, [told]), target)
    assert better < 0.5 * measure(TASKS["classes"], "nll", without.apply(scores), target)
    alone = rule("features", "classes", 2)
    alone.fit(scores, target, [told, 1000 * torch.randn(300, 2)])
    out = alone.apply(scores, [told, torch.zeros(300, 2)])
    assert measure(TASKS["classes"], "accuracy", out, target) > 0.9
    assert not bool(out.isnan().any())  # row 7 has features of the other
    with pytest.raises(Refused, match="fitted on 9 columns, and 6 came"):
        with_them.apply(scores)
    with pytest.raises(Refused, match="needs tapped features"):
        rule("features", "classes", 2).fit(scores, target)


def test_a_class_without_a_row_is_never_named_but_never_impossible():
    scores, target = team("classes", rows=200)
    target[target == 1] = 2
    fuser = rule("stacking", "classes")
    fuser.fit(scores, target)
    out = fuser.apply(scores)
    assert not bool((out.argmax(1) == 1).any())
    assert 0 < float(out[:, 1].max()) < 1e-6
    with pytest.raises(Refused, match="two classes"):
        fuser.fit(scores, torch.zeros_like(target))


def wide(classes: int = 40, members: int = 15, rows: int = 800):
    g = torch.Generator().manual_seed(3)
    target = torch.randint(classes, (rows,), generator=g)
    z = 3.0 * torch.nn.functional.one_hot(target, classes) + torch.randn(rows, classes, generator=g)
    noise = torch.randn(members, rows, classes, generator=g) * torch.linspace(0.3, 3, members)[:, None, None]
    return Classification([str(c) for c in range(classes)]), (z + noise).softmax(2), target


def test_above_the_columns_it_weighs_class_by_class_and_still_gains():
    task, scores, target = wide()
    fuser = make("stacking", task)
    fuser.fit(scores[:, :400], target[:400])
    assert fuser.part("deviation").shape == (15, 40)
    out = fuser.apply(scores[:, 400:])
    assert torch.allclose(out.sum(1), torch.ones(400), atol=1e-5)
    assert float(out.min()) > 0
    for metric, sign in (("accuracy", 1), ("nll", -1)):
        stacked = measure(task, metric, out, target[400:])
        assert sign * stacked > sign * measure(task, metric, scores[:, 400:].mean(0), target[400:])
    with pytest.raises(Refused, match="use model=mlp, or fuse=features"):
        make("stacking", task).fit(scores, target, [torch.zeros(800, 2)])


def test_class_by_class_is_a_ridge_regression_of_each_indicator_towards_the_mean():
    from sklearn.linear_model import Ridge

    task, scores, target = wide(classes=4, members=3, rows=200)
    state = classwise.fit(task, scores.double(), target, alpha=7.0)
    for c in range(4):
        x = scores[:, :, c].double().numpy().T
        found = Ridge(alpha=7.0).fit(x, (target == c).double().numpy() - x.mean(1))
        assert np.allclose(state["deviation"][:, c], found.coef_, atol=1e-6)
        assert state["bias"][c].item() == pytest.approx(found.intercept_, abs=1e-6)


def test_class_by_class_handles_labels_gaps_and_unknown_labels():
    scores, target = team("labels", rows=200)
    task = MultiLabel(["x", "y"])
    target[:100, 1] = torch.nan
    scores[2, 50:60] = torch.nan
    fuser = make("stacking", task, columns=1)
    fuser.fit(scores, target)
    out = fuser.apply(scores)
    assert not bool(out.isnan().any())
    assert 0 < float(out.min()) < float(out.max()) < 1
    other = make("stacking", task, columns=1)
    other.fit(scores[:, 100:], target[100:])
    assert not torch.equal(fuser.part("deviation")[:, 0], other.part("deviation")[:, 0])


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_an_mlp_needs_rows_of_which_everything_is_known(kind):
    scores, target = team(kind)
    target[:, 0] = torch.nan
    with pytest.raises(Refused, match="2 labelled rows of which everything is known, and has 0"):
        make("stacking", TASKS[kind], model="mlp").fit(scores, target)
    target[:3] = 1 - torch.eye(3)[:, :2]  # few enough that a fold of those that choose the penalty may hold all
    fuser = make("stacking", TASKS[kind], model="mlp")
    fuser.fit(scores, target)
    assert bool(fuser.apply(scores).isfinite().all())
    with pytest.raises(Refused, match="ridge head needs 2 labelled rows, and has 1"):
        make("stacking", TASKS["values"]).fit(*(x[..., :1, :] for x in team("values")))


def test_a_feature_that_is_missing_is_its_mean_over_the_rows_of_the_fit():
    scores, target = team("classes")
    feature = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).double()
    feature[60:] += 5
    target[60:] = -1
    feature[[3, 70]] = torch.nan
    fuser = rule("stacking", "classes")
    fuser.fit(scores, target, [feature])
    torch.testing.assert_close(fuser.part("center0"), feature[:60].nanmean(0))
