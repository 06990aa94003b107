"""How several teachers become one opinion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftc.errors import Refused
from sftc.losses import MeanSquared, Soft, Team
from views import classes, draw, labels, values, view

RULES = [{"rule": "mean"}, {"rule": "weighted", "weights": [1, 3, 0]}, {"rule": "confidence"}, {"rule": "agree"}]


def softmax(z: np.ndarray, axis: int = 1) -> np.ndarray:
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def three(*shape: int, scale: float = 2.0) -> list[torch.Tensor]:
    return [draw(*shape, seed=i, scale=scale) for i in range(3)]


def row(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r["rule"])
@pytest.mark.parametrize("space", ["probability", "logit"])
def test_one_teacher_is_passed_on_untouched(rule, space):
    z = torch.randn(5, 3)
    rule = rule | ({"weights": [2.0]} if "weights" in rule else {})
    logits, factor = Team(**rule, space=space)(view(torch.zeros(5, 3), z), 3.0)
    assert logits is z
    assert factor is None


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5)])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.0]])
def test_in_probability_space_the_softmax_at_t_of_the_opinion_is_the_mean_softmax(shape, weights):
    zs, t = three(*shape), 2.5
    team = Team() if weights is None else Team("weighted", weights=weights)
    logits, factor = team(view(torch.zeros(shape), *zs), t)
    share = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    expected = sum(w * softmax(z.numpy() / t) for w, z in zip(share, zs, strict=True))
    assert factor is None
    assert np.allclose(softmax(logits.numpy() / t), expected, atol=1e-12)


def test_in_logit_space_logits_are_averaged():
    zs = three(4, 3)
    assert torch.allclose(Team(space="logit")(view(zs[0], *zs), 9.0)[0], (zs[0] + zs[1] + zs[2]) / 3)
    weighted = Team("weighted", space="logit", weights=[1, 3, 0])(view(zs[0], *zs), 9.0)[0]
    assert torch.allclose(weighted, 0.25 * zs[0] + 0.75 * zs[1])


def test_sure_teachers_do_not_underflow():
    a, b = torch.tensor([[900.0, 0, -900]]), torch.tensor([[890.0, 0, -900]])
    logits, _ = Team()(view(a, a, b), 1.0)
    assert logits.isfinite().all()
    assert (logits - logits[0, 0])[0].tolist() == pytest.approx([0, -890 - np.log(2), -1790 - np.log(2)])


def test_confidence_weighs_each_teacher_in_each_row_by_its_highest_probability():
    zs = three(4, 3, 2)
    logits, factor = Team("confidence")(view(zs[0], *zs), 2.0)
    p = [softmax(z.numpy()) for z in zs]
    sure = np.stack([x.max(1, keepdims=True) for x in p])
    expected = (sure / sure.sum(0) * np.stack([softmax(z.numpy() / 2) for z in zs])).sum(0)
    assert factor is None
    assert np.allclose(softmax(logits.numpy() / 2), expected, atol=1e-12)


def test_of_labels_probabilities_are_averaged_label_by_label():
    zs = three(4, 5)
    logits, _ = Team()(view(zs[0], *zs, task=labels(5)), 3.0)
    assert np.allclose(sigmoid(logits.numpy() / 3), sum(sigmoid(z.numpy() / 3) for z in zs) / 3, atol=1e-12)
    sure = np.stack([np.abs(2 * sigmoid(z.numpy()) - 1).mean(1, keepdims=True) for z in zs])
    logits, _ = Team("confidence")(view(zs[0], *zs, task=labels(5)), 1.0)
    expected = (sure / sure.sum(0) * np.stack([sigmoid(z.numpy()) for z in zs])).sum(0)
    assert np.allclose(sigmoid(logits.numpy()), expected, atol=1e-12)


def test_teachers_that_are_sure_of_nothing_count_the_same():
    zero = torch.zeros(2, 3)
    assert torch.equal(Team("confidence")(view(zero, zero, zero, task=labels()), 1.0)[0], zero)


# Four rows, three classes, three teachers: all for a; two for b; a tie of three won by c; two for a, one sure of c.
VOTES = [
    torch.cat([row(0.6, 0.3, 0.1), row(0.1, 0.6, 0.3), row(0.5, 0.3, 0.2), row(0.5, 0.4, 0.1)]),
    torch.cat([row(0.5, 0.2, 0.3), row(0.2, 0.5, 0.3), row(0.2, 0.5, 0.3), row(0.6, 0.1, 0.3)]),
    torch.cat([row(0.7, 0.2, 0.1), row(0.9, 0.0, 0.1).clamp_min(-30), row(0.1, 0.2, 0.7), row(0.01, 0.0, 0.99)]),
]
VOTES[2] = VOTES[2].clamp_min(-30)


def test_conflicts_are_settled_by_those_who_won_the_vote():
    logits, factor = Team("agree")(view(VOTES[0], *VOTES), 1.0)
    a, b, c = (v.exp() for v in VOTES)
    expected = torch.stack([(a + b + c)[0] / 3, (a + b)[1] / 2, c[2], (a + b)[3] / 2])
    assert factor is None
    assert torch.allclose(logits.softmax(1), expected, atol=1e-9)


def test_conflicts_may_be_averaged_or_skipped():
    mean, none = Team("agree", conflict="mean")(view(VOTES[0], *VOTES), 2.0)
    skip, factor = Team("agree", conflict="skip")(view(VOTES[0], *VOTES), 2.0)
    plain, _ = Team()(view(VOTES[0], *VOTES), 2.0)
    assert none is None
    assert torch.equal(mean, plain)
    assert torch.equal(skip, plain)
    assert factor.tolist() == [1, 0, 0, 0]


def test_each_position_votes_by_itself():
    dense = [torch.stack([v, v.flip(0)], 2) for v in VOTES]
    logits, _ = Team("agree")(view(dense[0], *dense), 1.0)
    _, factor = Team("agree", conflict="skip")(view(dense[0], *dense), 1.0)
    single, _ = Team("agree")(view(VOTES[0], *VOTES), 1.0)
    assert torch.equal(logits, torch.stack([single, single.flip(0)], 2))
    assert factor.tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]


def test_labels_agree_by_row_and_vote_by_label():
    p = torch.tensor([[[0.9, 0.2], [0.7, 0.4]], [[0.8, 0.1], [0.6, 0.9]], [[0.6, 0.3], [0.1, 0.2]]]).double()
    zs = list(p.logit())
    _, factor = Team("agree", conflict="skip")(view(zs[0], *zs, task=labels(2)), 1.0)
    logits, _ = Team("agree")(view(zs[0], *zs, task=labels(2)), 1.0)
    assert factor.tolist() == [1, 0]
    expected = torch.tensor([[2.3 / 3, 0.2], [0.65, 0.3]]).double()  # yes by the first two; no by first and third
    assert torch.allclose(logits.sigmoid(), expected)


@pytest.mark.parametrize(("other", "expected"), [(0.45, 0.9), (0.05, 0.05)])
def test_a_tie_of_labels_goes_to_the_larger_sum(other, expected):
    zs = [torch.tensor([[p]]).double().logit() for p in (0.9, other)]
    logits, _ = Team("agree")(view(zs[0], *zs, task=labels(1)), 1.0)
    assert logits.sigmoid().item() == pytest.approx(expected)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_values_are_averaged_as_they_are(space):
    zs = three(4, 2)
    logits, factor = Team(space=space)(view(zs[0], *zs, task=values(2)), 4.0)
    assert torch.allclose(logits, sum(zs) / 3)
    assert factor is None


@pytest.mark.parametrize("rule", ["confidence", "agree"])
def test_values_have_no_confidence_and_no_vote(rule):
    with pytest.raises(Refused, match=f"rule={rule} needs probabilities"):
        Team(rule)(view(torch.zeros(2, 1), torch.zeros(2, 1), task=values(1)), 1.0)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ({"rule": "weigthed"}, "did you mean 'weighted'"),
        ({"space": "logits"}, "did you mean 'logit'"),
        ({"rule": "agree", "conflict": "drop"}, "vote, mean, skip"),
        ({"rule": "weighted"}, "go together"),
        ({"weights": [1, 2]}, "go together"),
        ({"rule": "weighted", "weights": [0, 0]}, "not all zero"),
        ({"rule": "weighted", "weights": [2, -1]}, "negative"),
        ({"rule": "weighted", "weights": []}, "not all zero"),
    ],
)
def test_contradictions_are_refused(kind, match):
    with pytest.raises(Refused, match=match):
        Team(**kind)


def test_a_team_must_fit_its_view():
    z = torch.zeros(2, 3)
    with pytest.raises(Refused, match="name a teacher"):
        Team()(view(z), 1.0)
    with pytest.raises(Refused, match="each of 3 teachers"):
        Team("weighted", weights=[1, 2])(view(z, z, z, z), 1.0)
    with pytest.raises(Refused, match=r"teacher 1 answers \(2, 4\), the student \(2, 3\)"):
        Team()(view(z, z, torch.zeros(2, 4)), 1.0)


def test_skipped_rows_give_zero_and_no_gradient():
    student = draw(4, 3).requires_grad_()
    seen = view(student, *VOTES)
    value = Soft(team=Team("agree", conflict="skip"), temperature=2.0)(seen)
    expected = classes().distance(student, Team()(seen, 2.0)[0], 2.0)[0]
    value.sum().backward()
    assert value.tolist() == pytest.approx([expected.item(), 0, 0, 0])
    assert (student.grad[1:] == 0).all()
    assert (student.grad[0] != 0).any()


def test_squared_logits_are_pooled_as_logits_whatever_the_team_says():
    zs, student = three(4, 3), draw(4, 3, seed=9)
    expected = ((student - (zs[0] + 3 * zs[1]) / 4) ** 2).mean(1)
    got = MeanSquared(team=Team("weighted", weights=[1, 3, 0]))(view(student, *zs))
    assert torch.allclose(got, expected)
