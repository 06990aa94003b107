"""Each rule that pools without a head, against hand values, numpy, scipy or scikit-learn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch

from fusing import TASKS, rule, team
from sftc.errors import Refused
from sftc.fusion import make, measures, picks
from sftc.fusion.measures import known_columns, measure
from sftc.fusion.picks import select
from sftc.fusion.simplex import least_nll, least_squares

CLASSES, LABELS, VALUES = TASKS.values()


def rows(*members: list[float]) -> torch.Tensor:
    """[M, 1, C]: one row, a line per member."""
    return torch.tensor(members)[:, None]


def test_a_vote_counts_heads_and_breaks_ties_by_summed_probability():
    # Two for a, two for c; c is the surer: the lowest label would be a.
    tie = rows([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.0, 0.1, 0.9], [0.0, 0.1, 0.9])
    assert int(make("vote", CLASSES).apply(tie).argmax(1)) == 2
    lead = rows([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0])  # the sum is for c, heads are for a
    out = make("vote", CLASSES).apply(lead)
    assert int(out.argmax(1)) == 0
    assert torch.allclose(out, (torch.tensor([[2.0, 0, 1]]) + lead.mean(0)) / 4)
    labels = rows([0.6, 0.6], [0.1, 0.49])
    assert (make("vote", LABELS).apply(labels) >= 0.5).tolist() == [[False, True]]


def test_a_vote_names_who_scikit_learns_hard_vote_names_where_nothing_is_tied():
    from sklearn.ensemble import VotingClassifier
    from sklearn.preprocessing import LabelEncoder

    scores, _ = team("classes", members=5)

    class Given:
        def __init__(self, m):
            self.m = m

        def predict(self, x):
            return scores[self.m].argmax(1).numpy()[x]

    hard = VotingClassifier([(str(m), Given(m)) for m in range(5)])
    hard.estimators_ = [Given(m) for m in range(5)]
    hard.le_ = LabelEncoder().fit([0, 1, 2])
    expected = hard.predict(np.arange(120))
    counts = torch.nn.functional.one_hot(scores.argmax(2), 3).sum(0).sort(1).values
    clear = (counts[:, -1] > counts[:, -2]).numpy()
    assert clear.sum() > 60
    assert (make("vote", CLASSES).apply(scores).argmax(1).numpy() == expected)[clear].all()


def test_a_weighted_vote_follows_the_weights_and_breaks_ties():
    scores = rows([0.6, 0.4, 0.0], [0.0, 0.9, 0.1], [0.0, 0.9, 0.1])
    assert int(make("weighted_vote", CLASSES, weights=[2.01, 1, 1]).apply(scores).argmax(1)) == 0
    assert int(make("weighted_vote", CLASSES, weights=[1.99, 1, 1]).apply(scores).argmax(1)) == 1
    assert int(make("weighted_vote", CLASSES, weights=[0.3, 0.1, 0.2]).apply(scores).argmax(1)) == 1  # 0.3 = 0.1 + 0.2
    labels = rows([0.9, 0.6], [0.4, 0.0], [0.4, 0.0])
    assert (make("weighted_vote", LABELS, weights=[2.01, 1, 1]).apply(labels) >= 0.5).tolist() == [[True, True]]
    assert (make("weighted_vote", LABELS, weights=[2, 1, 1]).apply(labels) >= 0.5).tolist() == [[True, False]]


def test_means_are_those_of_numpy():
    scores, _ = team("classes")
    assert np.allclose(make("mean", CLASSES).apply(scores), scores.numpy().mean(0), atol=1e-7)
    geometric = scipy.stats.gmean(scores.double().numpy(), axis=0)
    expected = geometric / geometric.sum(1, keepdims=True)
    assert np.allclose(make("mean_logit", CLASSES).apply(scores), expected, atol=1e-6)
    labels, _ = team("labels")
    logit = scipy.special.logit(labels.double().numpy()).mean(0)
    assert np.allclose(make("mean_logit", LABELS).apply(labels), scipy.special.expit(logit), atol=1e-5)
    weighted = make("weighted", CLASSES, how="given", weights=[3, 0, 1, 0]).apply(scores)
    assert torch.allclose(weighted, 0.75 * scores[0] + 0.25 * scores[2])


def test_a_row_that_only_members_without_weight_answered_is_their_mean():
    scores, _ = team("classes")
    scores[0, 5] = torch.nan
    out = make("weighted", CLASSES, how="given", weights=[1, 0, 0, 0]).apply(scores)
    assert torch.allclose(out[5], scores[1:, 5].mean(0))
    assert torch.equal(out[6], scores[0, 6])


def test_ranks_are_bordas_count_with_half_points_for_ties():
    scores, _ = team("classes", members=3, rows=40)
    scores[1, :20] = torch.tensor([0.2, 0.2, 0.6])
    expected = np.stack([scipy.stats.rankdata(m, axis=1) - 1 for m in scores.numpy()]).sum(0)
    out = make("rank", CLASSES).apply(scores)
    points = expected + 0.499 * scores.numpy().mean(0)
    assert np.allclose(out, points / points.sum(1, keepdims=True), atol=1e-6)
    tie = rows([0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1])
    assert int(make("rank", CLASSES).apply(tie).argmax(1)) == 0
    assert int(make("rank", CLASSES).apply(tie[:2]).argmax(1)) == 1


@pytest.mark.parametrize("members", [1, 4, 5])
def test_medians_and_trimmed_means_are_those_of_scipy(members):
    scores, _ = team("values", members)
    assert np.allclose(make("median", VALUES).apply(scores), np.median(scores.numpy(), axis=0), atol=1e-6)
    for share in (0.0, 0.2, 0.3):
        expected = scipy.stats.trim_mean(scores.double().numpy(), share, axis=0)
        assert np.allclose(make("trimmed", VALUES, share=share).apply(scores), expected, atol=1e-6)
    scores[0, :9] = torch.nan
    if members > 1:
        assert np.allclose(make("median", VALUES).apply(scores), np.nanmedian(scores.numpy(), axis=0), atol=1e-6)


def test_the_weighted_median_is_that_of_scikit_learns_adaboost():
    from sklearn.ensemble import AdaBoostRegressor

    scores, _ = team("values", members=7)
    weights = [0.1, 2.0, 0.7, 0.7, 1.3, 0.2, 0.9]

    class Given:
        def __init__(self, m):
            self.m = m

        def predict(self, x):
            return scores[self.m, :, 0].numpy()[x]

    boosted = AdaBoostRegressor()
    boosted.estimators_ = [Given(m) for m in range(7)]
    boosted.estimator_weights_ = np.array(weights)
    expected = boosted._get_median_predict(np.arange(120), 7)
    assert np.array_equal(make("weighted_median", VALUES, weights=weights).apply(scores)[:, 0].numpy(), expected)


@pytest.mark.parametrize("members", [3, 20])
def test_weights_of_least_nll_meet_the_conditions_of_an_optimum(members):
    scores, target = team("classes", members, rows=400)
    w = least_nll(known_columns(CLASSES, scores, target)[0])
    p = scores[:, torch.arange(400), target].double()
    gain = (p / (w @ p)).mean(1)  # minus the slope along each weight: 1 where it is used, no more elsewhere
    assert float(w.sum()) == pytest.approx(1)
    assert bool((w >= 0).all())
    assert float(gain.max()) < 1 + 1e-4
    assert torch.allclose(gain[w > 1e-3], torch.ones(()).double(), atol=1e-4)


def test_weights_of_least_nll_are_those_of_another_solver():
    from scipy.optimize import minimize

    scores, target = team("labels", 3, rows=300)
    p = np.where(target.numpy() == 1, scores.double().numpy(), 1 - scores.double().numpy()).reshape(3, -1)
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()  # noqa: E731
    found = minimize(lambda z: -np.log(softmax(z) @ p).mean(), np.zeros(3), method="Nelder-Mead", tol=1e-12)
    fuser = rule("weighted", "labels", 3)
    fuser.fit(scores, target)
    weights = fuser.weights()
    assert weights is not None
    assert -np.log(weights.numpy() @ p).mean() <= found.fun + 1e-7
    assert np.allclose(weights, softmax(found.x), atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_adds_nothing_is_left_out_of_the_weights(seed):
    """However its solver rounds: what is left of a weight would cost a whole model."""
    scores, target = team("classes", members=5, seed=seed, worst=30.0)
    w = least_nll(known_columns(CLASSES, scores, target)[0])
    assert bool((w == 0).any())
    assert float(w[w > 0].min()) >= 1e-4 * float(w.max())
    values, truth = team("values", members=5, seed=seed, worst=30.0)
    said, goal = known_columns(VALUES, values, truth)
    assert goal is not None
    w = least_squares(said, goal)
    assert float(w[w > 0].min()) >= 1e-4 * float(w.max())


def test_weights_of_least_squares_are_those_of_non_negative_least_squares():
    from scipy.optimize import nnls

    scores, target = team("values", 4, rows=300)
    said, truth = known_columns(VALUES, scores, target)
    assert truth is not None
    heavy = 1e4 * np.ones((1, 4))  # the sum of weights as one more, heavy row
    expected, _ = nnls(np.concatenate([said.double().numpy().T, heavy]), np.append(truth.double().numpy(), 1e4))
    assert np.allclose(least_squares(said, truth), expected, atol=1e-3)


def test_weights_by_score_are_accuracy_above_guessing_or_the_inverse_squared_error():
    scores, target = team("classes")
    fuser = rule("weighted", "classes", how="score")
    fuser.fit(scores, target)
    above = (scores.argmax(2) == target).double().mean(1) - 1 / 3
    assert torch.allclose(fuser.part("weights"), above / above.sum())
    scores, target = team("values")
    fuser = rule("weighted", "values", how="score")
    fuser.fit(scores, target)
    inverse = 1 / (scores - target).double().square().mean((1, 2))
    assert torch.allclose(fuser.part("weights"), inverse / inverse.sum(), atol=1e-6)


def test_the_best_is_the_earlier_of_equals():
    scores, target = team("classes")
    scores = scores[[3, 0, 0, 1]]
    fuser = rule("best", "classes")
    fuser.fit(scores, target)
    assert fuser.part("weights").tolist() == [0, 1, 0, 0]
    assert torch.equal(fuser.apply(scores), scores[1])


def full_loop(task, scores, target, metric, rounds):
    """Greedy selection on whole score sets, as it stands in the paper."""
    total, counts, best, kept = torch.zeros(scores.shape[1:]).double(), [0] * len(scores), float("inf"), None
    for taken in range(1, rounds + 1):
        losses = [measure(task, metric, (total + s) / taken, target) for s in scores]
        losses = [-x for x in losses] if metric == "accuracy" else losses
        near = [m for m, x in enumerate(losses) if x <= min(losses) + 1e-12]
        pick = next((m for m in near if counts[m]), near[0])
        total, counts[pick] = total + scores[pick], counts[pick] + 1
        if losses[pick] < best - 1e-12:
            best, kept = losses[pick], [c / taken for c in counts]
    return kept


@pytest.mark.parametrize(
    ("kind", "metric"), [("classes", "nll"), ("classes", "accuracy"), ("labels", "nll"), ("values", "rmse")]
)
def test_greedy_on_the_true_column_is_the_full_loop(kind, metric):
    scores, target = team(kind, members=6, rows=200, worst=0.7)
    fuser = rule("greedy", kind, criterion=metric, rounds=15)
    fuser.fit(scores, target)
    kept = full_loop(TASKS[kind], scores, target, metric, 15)
    assert fuser.part("weights").tolist() == pytest.approx(kept)
    assert sum(w > 0 for w in kept) > 1


def test_greedy_keeps_the_best_prefix_and_gives_ties_to_members_already_chosen():
    y = torch.zeros(2, dtype=torch.long)
    good = torch.tensor([[0.9, 0.05, 0.05], [0.3, 0.35, 0.35]])
    other = torch.tensor([[0.3, 0.35, 0.35], [0.8, 0.1, 0.1]])
    scores = torch.stack([good, good, other, torch.full((2, 3), 1 / 3)])
    fuser = rule("greedy", "classes", rounds=9)
    fuser.fit(scores, y)
    weights = fuser.part("weights")
    assert weights[1] == 0  # the copy never comes in
    assert weights[3] == 0
    assert 0 < float(weights[2]) < 1
    alone = rule("greedy", "classes", rounds=9)
    alone.fit(scores[[0, 3]], y)
    assert alone.part("weights").tolist() == [1, 0]


def test_a_cascade_loses_no_more_accuracy_than_it_may_and_answers_early():
    scores, target = team("classes", members=4, rows=600)
    scores = scores.flip(0)  # the weakest is the cheapest
    full = measure(CLASSES, "accuracy", scores.mean(0), target)
    before = torch.inf
    for slack in (0.0, 0.01, 0.1, 1.0):
        fuser = rule("cascade", "classes", costs=[1, 2, 4, 8], slack=slack)
        fuser.fit(scores, target)
        out = fuser.apply(scores)
        assert measure(CLASSES, "accuracy", out, target) >= full - slack - 1e-9
        assert float(fuser.shares.sum()) == pytest.approx(1)
        assert fuser.cost == pytest.approx(float((fuser.shares * torch.tensor([1, 3, 7, 15])).sum()))
        assert fuser.cost <= before
        before = fuser.cost
    assert fuser.shares.tolist() == [1, 0, 0, 0]


def test_a_cascade_asks_in_the_order_of_cost_and_stops_at_its_bars():
    scores = torch.tensor([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]]])
    fuser = rule("cascade", "classes", costs=[5, 1])
    fuser.load(
        {"order": torch.tensor([1, 0]), "bars": torch.tensor([0.8, -torch.inf]), "costs": torch.tensor([5.0, 1.0])}
    )
    out = fuser.apply(scores)
    assert torch.allclose(out[0], scores[1, 0])
    assert torch.allclose(out[1], scores[:, 1].mean(0))
    assert fuser.shares.tolist() == [0.5, 0.5]
    assert fuser.cost == 0.5 * 1 + 0.5 * 6


@pytest.mark.slow
def test_a_large_team_is_fused_in_little_more_memory_than_its_scores():
    """In a process of its own, whose peak is its own: 20 members, 10,000 rows, 100 classes are 80 MB."""
    code = """
import resource, torch
from sftc.tasks import Classification
from sftc.fusion import make
torch.set_num_threads(1)
task, y = Classification([str(c) for c in range(100)]), torch.arange(10_000) % 100
small = torch.rand(2, 200, 100).softmax(2)
names = ("vote", "mean", "mean_logit", "rank", "median", "weighted", "greedy", "best", "stacking")
def all_rules(s, y):
    for name in names:
        fuser = make(name, task)
        fuser.fit(s, y)
        fuser.apply(s)
all_rules(small, y[:200])
scores = torch.rand(20, 10_000, 100).div_(50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
all_rules(scores, y)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 80


def test_a_wrong_number_of_weights_is_refused():
    scores, _ = team("classes")
    with pytest.raises(Refused, match="each of 2 members, and 4 came"):
        make("weighted", CLASSES, how="given", weights=[1, 2]).apply(scores)


def test_a_tie_goes_to_who_is_chosen_already_though_another_comes_earlier():
    table = {3.0: 9.0, 0.0: 5.0, 1.5: 5.0, 1.0: 4.0, 2.0: 1.0}  # in round 2, one of each is as good as the second twice
    loss = lambda means: torch.tensor([table[round(float(m), 6)] for m in means]).double()  # noqa: E731
    assert select(torch.tensor([[3.0], [0.0]]), loss, 3).tolist() == [1, 2]


@pytest.mark.parametrize("kind", TASKS)
def test_a_gap_is_filled_with_the_mean_of_who_answered(kind):
    scores, target = team(kind, members=3, rows=9)
    whole, _ = known_columns(TASKS[kind], scores, target)
    scores[0, 4], scores[:, 5] = torch.nan, torch.nan
    said, truth = known_columns(TASKS[kind], scores, target)
    wide = whole.shape[1] // 9  # positions of a row
    assert torch.allclose(said[0, 4 * wide : 5 * wide], whole[1:, 4 * wide : 5 * wide].mean(0))
    assert torch.equal(said[:, 5 * wide :], whole[:, 6 * wide :])  # row 5 is gone
    assert truth is None or len(truth) == said.shape[1]


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 100])
def test_products_have_the_logarithm_of_their_factors(columns):
    said = torch.rand(5, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(columns))
    said[0] = 0
    expected = -said.clamp_min(measures.FLOOR).log().mean(1)
    assert torch.allclose(picks._nll(said), expected, rtol=1e-12)
