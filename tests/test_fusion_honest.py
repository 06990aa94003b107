"""Cross-fitting that leaks nothing, one temperature, a bootstrap that knows noise, and why a member is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fusing import PAIRS, TASKS, options, rule, team
from sftc.errors import Refused
from sftc.fusion import Temperature, make
from sftc.fusion.compare import against, paired
from sftc.fusion.folds import assign
from sftc.fusion.honest import crossfit, held_together, out_of_fold, tempered
from sftc.fusion.measures import measure, row_values
from sftc.fusion.pooling import Pooling
from sftc.fusion.targets import labelled
from sftc.fusion.why import disagreement, error_correlation, leave_one_out, per_class

CLASSES, LABELS, VALUES = TASKS.values()


class Memory(Pooling):
    """Knows every labelled row it was fitted on by heart, and guesses the others."""

    name = "memory"
    needs_fit = True

    def fit(self, scores, target, features=()):
        self.known = {tuple(r.tolist()): int(t) for r, t in zip(scores[0], target, strict=True) if t >= 0}

    def apply(self, scores, features=()):
        names = [self.known.get(tuple(r.tolist()), int(r[0] * 1e4) % 3) for r in scores[0]]
        return torch.nn.functional.one_hot(torch.tensor(names), 3) * 0.97 + 0.01


def noise(rows: int = 900):
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(1, rows, 3, generator=g)
    return scores / scores.sum(2, keepdim=True), torch.randint(3, (rows,), generator=g)


def test_a_fuser_that_memorises_rows_scores_at_chance():
    scores, target = noise()
    fuser = Memory(CLASSES)
    fuser.fit(scores, target)
    assert measure(CLASSES, "accuracy", fuser.apply(scores), target) == 1
    out = crossfit(Memory(CLASSES), scores, target)
    assert abs(measure(CLASSES, "accuracy", out, target) - 1 / 3) < 0.06
    assert measure(CLASSES, "nll", out, target) < 1.2  # the temperature has seen how often it is wrong


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_no_rows_score_depends_on_its_own_label(name, kind):
    scores, target = team(kind, rows=100)
    features = [torch.randn(100, 3, generator=torch.Generator().manual_seed(0))] if name == "features" else []
    fold = assign(TASKS[kind], target, 5)  # not that of `other`: stratified folds move with the label
    other = target.clone()
    other[7] = (target[7] + 1) % 3 if kind == "classes" else 1 - target[7] if kind == "labels" else target[7] + 5
    one, two = (out_of_fold(rule(name, kind), scores, t, fold, features)[0] for t in (target, other))
    assert torch.equal(one[fold == fold[7]], two[fold == fold[7]])
    if kind != "values":
        one, two = (tempered(Temperature(TASKS[kind]), one, t, fold)[0] for t in (target, other))
        assert torch.equal(one[fold == fold[7]], two[fold == fold[7]])


def test_folds_are_stratified_and_the_same_for_the_same_seed():
    target = torch.tensor([0] * 50 + [1] * 10 + [2] * 5 + [-1] * 20)
    fold = assign(CLASSES, target, 5, seed=3)
    for c, count in ((0, 10), (1, 2), (2, 1), (-1, 4)):
        assert fold[target == c].bincount(minlength=5).tolist() == [count] * 5
    assert torch.equal(fold, assign(CLASSES, target, 5, seed=3))
    assert not torch.equal(fold, assign(CLASSES, target, 5, seed=4))


def test_unlabelled_rows_get_scores_and_rules_without_a_fit_are_applied_as_they_are():
    scores, target = team("classes")
    target[::3] = -1
    assert not bool(crossfit(rule("stacking", "classes"), scores, target).isnan().any())
    out, parts = out_of_fold(rule("mean", "classes"), scores, target, assign(CLASSES, target, 5))
    assert torch.equal(out, rule("mean", "classes").apply(scores))
    assert parts == []
    values, truth = team("values")
    assert torch.equal(crossfit(rule("mean", "values"), values, truth), rule("mean", "values").apply(values))
    with pytest.raises(Refused, match="2 labelled rows"):
        crossfit(rule("greedy", "classes"), scores, torch.full_like(target, -1))
    with pytest.raises(Refused, match="2 folds"):
        crossfit(rule("greedy", "classes"), scores, target, folds=1)


@pytest.mark.parametrize("kind", ["classes", "labels"])
@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_the_temperature_is_that_of_least_nll(kind, factor):
    from scipy.optimize import minimize_scalar

    scores, target = team(kind, rows=400)
    task = TASKS[kind]
    fused = task.scores(task.logits(scores[-1]) * factor)
    target[:50] = -1 if kind == "classes" else torch.nan
    fused[60] = torch.nan
    temperature = Temperature(task).fit(fused, target)
    known = labelled(target) & ~fused.isnan().any(1)
    rows, truth = fused[known].double(), target[known]
    missed = 0.5 / (len(rows) + 1)
    wrong = rows.scatter(1, truth[:, None], 0).argmax(1) if kind == "classes" else 1 - truth

    def cost(u: float) -> float:
        at = task.scores(task.logits(rows) / np.exp(u))
        return (1 - missed) * measure(task, "nll", at, truth) + missed * measure(task, "nll", at, wrong)

    best: Any = minimize_scalar(cost, bounds=(-4, 4), method="bounded")
    assert temperature.log_t == pytest.approx(best.x, abs=2e-4)
    out = temperature.apply(fused)
    assert measure(task, "nll", out, target) < measure(task, "nll", fused, target)
    assert bool(out[60].isnan().all())
    assert torch.equal(task.hard(out[100:]), task.hard(fused[100:]))
    other = Temperature(task)
    other.load(temperature.state())
    assert torch.equal(other.apply(fused).nan_to_num(-1.0), out.nan_to_num(-1.0))


def test_a_temperature_that_does_not_help_is_one_and_changes_no_bit():
    uniform = torch.full((30, 3), 1 / 3)
    temperature = Temperature(CLASSES).fit(uniform, torch.arange(30) % 3)
    assert temperature.value == 1
    assert temperature.apply(uniform) is uniform
    assert Temperature(CLASSES).fit(uniform, torch.full((30,), -1)).value == 1
    with pytest.raises(Refused, match="values have no temperature"):
        Temperature(VALUES)


@pytest.mark.parametrize("rows", [30, 300])
def test_rows_that_are_all_right_are_as_sure_as_half_a_miss_allows(rows):
    y = torch.arange(rows) % 3
    right = torch.nn.functional.one_hot(y, 3) * 0.4 + 0.2  # no other class is likelier than the next
    missed = 0.5 / (rows + 1)
    sure = Temperature(CLASSES).fit(right, y).apply(right).amax(1)
    assert float(1 - sure.mean()) == pytest.approx(missed, rel=1e-3)
    labels = torch.nn.functional.one_hot(y, 3).float()
    out = Temperature(LABELS).fit(labels * 0.4 + 0.3, labels).apply(labels * 0.4 + 0.3)
    assert float((out - labels).abs().max()) == pytest.approx(missed, rel=1e-3)


def test_hopeless_rows_leave_the_temperature_finite():
    y = torch.arange(30) % 3
    wrong = torch.nn.functional.one_hot((y + 1) % 3, 3).float()
    out = Temperature(CLASSES).fit(wrong, y).apply(wrong)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("kind", TASKS)
def test_the_bootstrap_agrees_with_the_normal_interval_and_with_itself(kind):
    scores, target = team(kind, members=2, rows=500)
    task = TASKS[kind]
    found = paired(task, scores[1], scores[0], target, draws=4000)
    assert found == paired(task, scores[1], scores[0], target, draws=4000)
    assert found != paired(task, scores[1], scores[0], target, draws=4000, seed=1)
    for metric, got in found.items():
        plain = measure(task, metric, scores[1], target) - measure(task, metric, scores[0], target)
        assert got["difference"] == pytest.approx(plain)
        assert got["low"] < got["mean"] < got["high"]
        assert not got["noise"]
        if metric != "rmse":
            apart = row_values(task, metric, scores[1], target) - row_values(task, metric, scores[0], target)
            half = 1.96 * float(apart.std()) / 500**0.5
            assert got["high"] - got["low"] == pytest.approx(2 * half, rel=0.1)


def test_a_gain_inside_the_noise_is_said_to_be():
    scores, target = team("classes", members=2, rows=200, worst=0.6)
    apart, same = against(CLASSES, [team("classes", rows=200)[0][3], scores[0]], scores[0], target)
    assert same["accuracy"] == {"difference": 0, "mean": 0, "low": 0, "high": 0, "noise": True}
    assert not apart["accuracy"]["noise"]
    assert paired(CLASSES, scores[1], scores[0], target)["accuracy"]["noise"]


def test_candidates_with_gaps_are_compared_on_the_rows_they_share():
    scores, target = team("classes", members=3, rows=100)
    scores[1, :40] = torch.nan
    together = against(CLASSES, [scores[1], scores[2]], scores[0], target)
    assert together[0] == paired(CLASSES, scores[1, 40:], scores[0, 40:], target[40:])
    assert together[1] == paired(CLASSES, scores[2], scores[0], target)
    with pytest.raises(Refused, match="nothing to compare"):
        paired(CLASSES, scores[0], scores[1], torch.full_like(target, -1))


@pytest.mark.parametrize("kind", TASKS)
def test_a_member_is_worth_what_the_team_loses_without_it(kind):
    scores, target = team(kind, members=3)
    task = TASKS[kind]
    gains = leave_one_out(lambda members: make("mean", task), scores, target, folds=0)
    for metric, gain in gains.items():
        sign = 1 if metric == "accuracy" else -1
        for m in range(3):
            rest = [i for i in range(3) if i != m]
            loss = measure(task, metric, scores.mean(0), target) - measure(task, metric, scores[rest].mean(0), target)
            assert float(gain[m]) == pytest.approx(sign * loss, abs=1e-6)
    copies = scores[[0, 0, 0]]
    honest = leave_one_out(lambda members: make("greedy", task), copies, target)
    assert all(torch.allclose(gain, torch.zeros(3).double(), atol=1e-9) for gain in honest.values())
    assert all(bool(g.isnan().all()) for g in leave_one_out(lambda m: make("mean", task), scores[:1], target).values())


def test_leaving_one_out_takes_its_weight_along():
    scores, target = team("values", members=3)
    weights = options("weighted_median", 3)["weights"]
    gains = leave_one_out(
        lambda members: make("weighted_median", VALUES, weights=[weights[m] for m in members]), scores, target
    )
    assert gains["rmse"].shape == (3,)
    assert bool(gains["rmse"].isfinite().all())


def test_a_member_without_whom_no_team_is_left_has_no_worth():
    """The others are all of weight 0: that is no reason to refuse the whole fusion."""
    scores, target = team("classes", members=3)
    weights = [1.0, 0.0, 0.0]
    gains = leave_one_out(
        lambda members: make("weighted", CLASSES, how="given", weights=[weights[m] for m in members]), scores, target
    )
    for gain in gains.values():
        assert gain.isnan().tolist() == [True, False, False]
        assert gain[1:].tolist() == [0, 0]


def test_disagreement_and_correlation_of_errors_are_those_of_numpy():
    scores, target = team("classes", worst=5.0)
    scores = scores.roll(-1, 0)  # the best of them is never wrong
    said = scores.argmax(2).numpy()
    wrong = (said != target.numpy()).astype(float)
    assert np.allclose(disagreement(CLASSES, scores), (said[:, None] != said[None]).mean(2))
    assert np.allclose(error_correlation(CLASSES, scores, target)[:3, :3], np.corrcoef(wrong[:3]))
    values, truth = team("values")
    error = (values - truth).double().flatten(1).numpy()
    assert np.allclose(error_correlation(VALUES, values, truth), np.corrcoef(error), atol=1e-6)
    assert np.allclose(disagreement(VALUES, values)[0, 1], (values[0] - values[1]).double().square().mean().sqrt())
    scores[0, :60], target[100:] = torch.nan, -1
    assert np.allclose(disagreement(CLASSES, scores)[0, 1], (said[0, 60:] != said[1, 60:]).mean())
    assert np.allclose(error_correlation(CLASSES, scores, target)[0, 2], np.corrcoef(wrong[[0, 2], 60:100])[0, 1])


def test_who_is_always_right_correlates_with_nobody():
    scores, target = team("classes", members=2)
    scores[0] = torch.nn.functional.one_hot(target, 3).float()
    assert error_correlation(CLASSES, scores, target).tolist() == [[1, 0], [0, 1]]


def test_help_and_harm_are_counted_by_true_class():
    y = torch.tensor([0, 0, 0, 1, 1, 2, -1])
    right, wrong = (
        torch.nn.functional.one_hot(y.clamp_min(0), 3).float(),
        torch.nn.functional.one_hot((y + 1) % 3, 3).float(),
    )
    fused, single = right.clone(), wrong.clone()
    fused[3], single[3] = wrong[3], right[3]
    single[2] = right[2]
    found = per_class(CLASSES, fused, single, y)
    assert {k: v.tolist() for k, v in found.items()} == {"rows": [3, 2, 1], "helped": [2, 1, 1], "harmed": [0, 1, 0]}
    labels = per_class(LABELS, torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]]), torch.tensor([[1.0, 1.0]]))
    assert {k: v.tolist() for k, v in labels.items()} == {"rows": [1, 1], "helped": [1, 0], "harmed": [0, 1]}
    values = per_class(VALUES, torch.tensor([[1.0, 9.0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, torch.nan]]))
    assert {k: v.tolist() for k, v in values.items()} == {"rows": [1, 0], "helped": [1, 0], "harmed": [0, 0]}


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_temperatures_of_folds_are_those_of_the_others_alone(kind):
    scores, target = team(kind, rows=150)
    fused = TASKS[kind].scores(TASKS[kind].logits(scores[-1]) * 4)
    fused[7] = torch.nan
    target[20:30] = -1 if kind == "classes" else torch.nan
    fold = assign(TASKS[kind], target, 3)
    whole = Temperature(TASKS[kind])
    parts = whole.fit_folds(fused, target, fold)
    assert whole.log_t == Temperature(TASKS[kind]).fit(fused, target).log_t != 0
    for k, part in enumerate(parts):
        assert part.log_t == Temperature(TASKS[kind]).fit(fused[fold != k], target[fold != k]).log_t != 0


def test_a_fold_has_a_temperature_only_if_it_helps_the_others():
    """Uniform rows have the same NLL at any; that of rows which are sure and wrong is not theirs to beat."""
    y = torch.arange(60) % 3
    fold = (torch.arange(60) >= 30).long()
    wrong = torch.nn.functional.one_hot((y + 1) % 3, 3) * 0.9 + 0.1 / 3
    fused = torch.where(fold[:, None] == 0, wrong, torch.full((60, 3), 1 / 3))
    parts = Temperature(CLASSES).fit_folds(fused, y, fold)
    assert parts[0].log_t == 0 != parts[1].log_t


def test_folds_are_counted_by_rows_and_follow_the_seed():
    target = torch.arange(40) % 3
    row = torch.arange(40) // 10
    target[row > 0] = -1
    assert held_together(CLASSES, target, row=row).tolist() == [0] * 40  # one row is known, of ten answers
    target = torch.arange(40) % 3
    assert int(held_together(CLASSES, target, row=row).max()) == 3
    for seed in (0, 3):
        assert torch.equal(held_together(CLASSES, target, seed=seed), assign(CLASSES, target, 5, seed))
    assert not torch.equal(held_together(CLASSES, target, seed=3), held_together(CLASSES, target))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_order_of_folds_does_not_show(name, kind):
    """Answers that are sorted by fold are looked at where they lie, others are copied."""
    scores, target = team(kind, rows=100)
    features = [torch.randn(100, 3, generator=torch.Generator().manual_seed(0))] if name == "features" else []
    fold = assign(TASKS[kind], target, 5)
    order = fold.argsort(stable=True)
    more = {"alpha": 1.0} if name in ("stacking", "features") else {}  # else chosen on folds of the rows as they come
    out, _ = out_of_fold(rule(name, kind, **more), scores, target, fold, features)
    ordered, _ = out_of_fold(
        rule(name, kind, **more), scores[:, order], target[order], fold[order], [f[order] for f in features]
    )
    assert torch.allclose(out[order], ordered, atol=1e-5)
