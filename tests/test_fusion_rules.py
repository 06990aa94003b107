"""What every rule must do, whatever it is: gaps, one member, copies, zeros, state, repeatability, refusals."""

from __future__ import annotations

import pytest
import torch

from fusing import PAIRS, TASKS, rule, team
from sftc.errors import Refused
from sftc.fusion import FUSERS, classwise, make
from sftc.fusion.folds import assign
from sftc.fusion.targets import hidden


def tapped(target: torch.Tensor) -> list[torch.Tensor]:
    known = target.float().reshape(len(target), -1).nan_to_num(0.0)
    g = torch.Generator().manual_seed(5)
    return [known + torch.randn(known.shape, generator=g), torch.randn(len(target), 3, generator=g)]


def fitted(name, kind, scores, target, **more):
    fuser = rule(name, kind, len(scores), **more)
    features = tapped(target) if name == "features" else []
    fuser.fit(scores, target, features)
    return fuser, fuser.apply(scores, features), features


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_scores_stay_scores_and_beat_the_worst_member(name, kind):
    scores, target = team(kind)
    _, out, _ = fitted(name, kind, scores, target)
    assert out.shape == scores.shape[1:]
    assert out.dtype == scores.dtype
    if kind != "values":
        assert bool(((out >= 0) & (out <= 1)).all())
    if kind == "classes":
        assert torch.allclose(out.sum(1), torch.ones(len(out)), atol=1e-5)
    goal = torch.nn.functional.one_hot(target, 3) if kind == "classes" else target
    error = [(s - goal).square().mean() for s in (out, scores[-1])]
    assert error[0] < error[1] or name in ("rank", "features")  # points are no probabilities, features no members


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_members_without_an_answer_are_left_out_and_nobodys_answer_is_nan(name, kind):
    if name == "features":
        return
    scores, target = team(kind)
    scores[1, 10:30] = torch.nan
    scores[:, 50] = torch.nan
    scores[1:, 60] = torch.nan
    fuser, out, _ = fitted(name, kind, scores, target)
    assert bool(out[50].isnan().all())
    assert not bool(out[torch.arange(len(out)) != 50].isnan().any())
    if name not in ("stacking", "weighted_median", "weighted_vote", "vote", "rank"):
        assert torch.allclose(out[60], scores[0, 60], atol=1e-6)  # who is alone is right
    if not fuser.needs_fit and not fuser.state():
        assert torch.equal(out[10:30], rule(name, kind, 3).apply(scores[[0, 2, 3]])[10:30])


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_unlabelled_rows_change_no_fit(name, kind):
    scores, target = team(kind)
    more = scores.clone(), target.clone()
    target[80:] = -1 if kind == "classes" else torch.nan
    more[1][80:] = target[80:]
    more[0][:, 80:] = team(kind, seed=9)[0][:, 80:]
    states = []
    for s, t in ((scores, target), more):
        features = tapped(t) if name == "features" else []
        fuser = rule(name, kind)
        fuser.fit(s, t, features)
        states.append(fuser.state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_state_is_named_arrays_and_loads_to_the_same_bits(name, kind):
    scores, target = team(kind)
    fuser, out, features = fitted(name, kind, scores, target)
    other = rule(name, kind)
    other.load(fuser.state())
    assert all(isinstance(value, torch.Tensor) for value in fuser.state().values())
    assert torch.equal(other.apply(scores, features), out)
    assert torch.equal(fitted(name, kind, scores, target)[1], out)  # and again from the start


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_one_member_and_copies_of_one(name, kind):
    single, target = team(kind, members=1)
    for scores in (single, single.expand(4, -1, -1).contiguous()):
        fuser, out, _ = fitted(name, kind, scores, target)
        assert not bool(out.isnan().any())
        if name in (
            "mean",
            "mean_logit",
            "median",
            "trimmed",
            "weighted",
            "greedy",
            "best",
            "cascade",
            "weighted_median",
        ):
            assert torch.allclose(out, single[0], atol=1e-6)
        if (weights := fuser.weights()) is not None:
            assert len(weights) == len(scores)
            assert float(weights.sum()) == pytest.approx(1)
            assert bool((weights >= 0).all())


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in PAIRS if k != "values"])
def test_probabilities_of_zero_and_one_give_no_nan(name, kind):
    scores, target = team(kind)
    scores = scores.round()
    if kind == "classes":
        scores = torch.nn.functional.one_hot(scores.argmax(2), 3).float()
    assert bool(fitted(name, kind, scores, target)[1].isfinite().all())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_inputs_are_never_written_on(name, kind):
    scores, target = team(kind)
    before = scores.clone(), target.clone()
    fitted(name, kind, scores, target)
    assert torch.equal(scores, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize("name", FUSERS)
def test_a_kind_it_makes_no_sense_for_is_refused_with_the_way_out(name):
    for kind in TASKS.keys() - FUSERS[name].kinds:
        with pytest.raises(Refused, match=rf"fuse={name} makes no sense for {kind}; use fuse="):
            make(name, TASKS[kind])


@pytest.mark.parametrize(
    "name", ["weighted", "greedy", "best", "weighted_median", "weighted_vote", "cascade", "stacking"]
)
def test_another_number_of_members_is_refused(name):
    kind = "values" if name == "weighted_median" else "classes"
    scores, target = team(kind)
    fuser, _, _ = fitted(name, kind, scores, target)
    with pytest.raises(Refused, match="the same members"):
        fuser.apply(scores[:3])


@pytest.mark.parametrize("name", [n for n, fuser in FUSERS.items() if fuser.needs_fit])
def test_what_was_not_fitted_or_has_nothing_to_fit_on_says_so(name):
    scores, target = team("classes")
    fuser = rule(name, "classes")
    with pytest.raises(Refused, match="fit it, or load"):
        fuser.apply(scores, tapped(target))
    with pytest.raises(Refused, match="label"):
        fuser.fit(scores, torch.full_like(target, -1), tapped(target) if name == "features" else [])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("greedi", {}, "fuse=greedi is not known; did you mean 'greedy'"),
        ("greedy", {"round": 3}, "no option 'round'; did you mean 'rounds'"),
        ("mean", {"share": 3}, "it has: none"),
        ("greedy", {"rounds": 0}, "1 or more"),
        ("greedy", {"criterion": "rmse"}, "one of: auto, accuracy, nll"),
        ("trimmed", {"share": 0.5}, "fuse=median"),
        ("weighted", {"how": "given"}, "go together"),
        ("weighted", {"weights": [1, 2]}, "go together"),
        ("weighted", {"how": "given", "weights": [0, 0]}, "not all zero"),
        ("weighted_vote", {"weights": [1, "a", None]}, r"weights=\[1, 'a', None\] must be numbers"),
        ("weighted_vote", {}, "needs weights="),
        ("cascade", {}, "needs costs="),
        ("cascade", {"costs": [1, 2], "slack": 2}, "a share of rows"),
        ("stacking", {"model": "ridge"}, "use model=logistic or model=mlp"),
        ("stacking", {"alpha": 0}, "inner cross-validation"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(Refused, match=message) as caught:
        make(name, TASKS["classes"], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in PAIRS if FUSERS[n].needs_fit or n == "weighted"])
@pytest.mark.parametrize("gaps", [False, True])
def test_fitting_all_folds_at_once_is_fitting_without_each(name, kind, gaps):
    scores, target = team(kind)
    target[::7] = -1 if kind == "classes" else torch.nan
    if gaps and name != "features":
        scores[1, 10:30] = scores[:, 50] = torch.nan
    features = tapped(target) if name == "features" else []
    fold = assign(TASKS[kind], target, 4)
    more = {"columns": 5} if (name, kind) in (("stacking", "classes"), ("stacking", "labels")) else {}
    whole = rule(name, kind, **more)
    parts = whole.fit_folds(scores, target, fold, features)
    assert len(parts) == 4
    for part, held in (
        (whole, torch.zeros(len(fold), dtype=torch.bool)),
        *((p, fold == k) for k, p in enumerate(parts)),
    ):
        alone = rule(name, kind, **more)
        alone.fit(scores, hidden(target, held), features)
        assert part.state().keys() == alone.state().keys()
        for key, value in alone.state().items():
            assert torch.allclose(part.state()[key], value, rtol=1e-4, atol=1e-5), (key, held.sum())


def test_class_by_class_nothing_of_a_fold_is_in_the_fit_without_it():
    scores, target = team("classes", rows=200)
    fold = assign(TASKS["classes"], target, 5)
    other = torch.where(fold == 2, (target + 1) % 3, target)
    one, two = (make("stacking", TASKS["classes"], columns=5).fit_folds(scores, t, fold) for t in (target, other))
    for k, same in enumerate([False, False, True, False, False]):
        states = one[k].state(), two[k].state()
        assert torch.equal(states[0]["deviation"], states[1]["deviation"]) == same
    chosen = classwise.fit_folds(TASKS["classes"], scores, target, fold)
    assert all(torch.equal(chosen[3][n], one[2].state()[n]) for n in ("deviation", "bias"))
    with pytest.raises(Refused, match="needs 5 labelled rows"):
        classwise.fit_folds(TASKS["classes"], scores[:, :6], target[:6], torch.tensor([0, 0, 0, 1, 1, 2]))
