"""Losses and scores of each kind of problem, against independent answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sftc.errors import Refused
from sftc.tasks import Classification, MultiLabel, Regression, check_quantiles

NAMES = ["a", "b", "c", "d"]


def _logits(n: int = 16, c: int = 4, *positions: int) -> torch.Tensor:
    return torch.randn(n, c, *positions, generator=torch.Generator().manual_seed(0))


TARGET = torch.arange(16) % 4


def test_nll_on_log_softmax_is_cross_entropy_with_and_without_smoothing():
    x = _logits()
    for smoothing in (0.0, 0.1):
        ce = Classification(NAMES, loss="cross_entropy", smoothing=smoothing).loss(x, TARGET)
        nll = Classification(NAMES, loss="nll", smoothing=smoothing).loss(F.log_softmax(x, 1), TARGET)
        assert torch.allclose(ce, nll, atol=1e-6)


def test_class_weights_give_torchs_weighted_mean():
    x, w = _logits(), torch.tensor([1.0, 2.0, 0.5, 4.0])
    task = Classification(NAMES, class_weight=w)
    weight = task.weight(TARGET)
    ours = (task.loss(x, TARGET) * weight).sum() / weight.sum()
    assert torch.allclose(ours, F.cross_entropy(x, TARGET, weight=w))


def test_focal_without_focus_is_cross_entropy_and_with_it_discounts_easy_rows():
    x = _logits()
    assert torch.allclose(
        Classification(NAMES, loss="focal", gamma=0.0).loss(x, TARGET), F.cross_entropy(x, TARGET, reduction="none")
    )
    p = x.softmax(1).gather(1, TARGET[:, None])[:, 0]
    assert torch.allclose(Classification(NAMES, loss="focal").loss(x, TARGET), -((1 - p) ** 2) * p.log(), atol=1e-6)


def test_unlabelled_rows_cost_and_count_nothing_even_on_dense_targets():
    target = torch.full((2, 3, 3), -1)
    target[0, 1, 1] = 2
    task = Classification(NAMES)
    for loss in ("cross_entropy", "nll", "focal"):
        values = Classification(NAMES, loss=loss, smoothing=0.1).loss(_logits(2, 4, 3, 3), target)
        assert values.shape == target.shape
        assert int((values != 0).sum()) == 1
    assert float(task.weight(target).sum()) == 1
    scores, kept, row = task.flat(_logits(2, 4, 3, 3), target, torch.tensor([7, 9]))
    assert scores.shape == (1, 4)
    assert kept.tolist() == [2]
    assert row.tolist() == [7]


def test_distance_is_t_squared_kl_and_keeps_its_gradient_scale():
    x, t = _logits(), _logits().flip(0)
    p, q = (t / 4).softmax(1), (x / 4).softmax(1)
    expected = 16 * (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(Classification(NAMES).distance(x, t, 4.0), expected, atol=1e-5)


def test_scores_and_logits_are_inverse():
    x = _logits()
    for task in (
        Classification(NAMES),
        MultiLabel(NAMES),
        Regression(NAMES, mean=torch.ones(4), std=torch.full((4,), 3.0)),
    ):
        assert torch.allclose(task.scores(task.logits(task.scores(x))), task.scores(x), atol=1e-5)


def test_regression_learns_in_standard_units_and_scores_in_the_datas_own():
    y = torch.tensor([[100.0], [300.0]])
    task = Regression(["y"], mean=torch.tensor([200.0]), std=torch.tensor([100.0]))
    assert torch.allclose(task.loss(torch.tensor([[-1.0], [1.0]]), y), torch.zeros(2))
    assert torch.allclose(task.scores(torch.tensor([[-1.0], [1.0]])), y)
    huber = Regression(["y"], loss="huber", delta=1.0).loss(torch.tensor([[3.0]]), torch.tensor([[0.0]]))
    assert float(huber) == 2.5
    assert math.isfinite(float(Regression(["y"], std=torch.zeros(1)).loss(torch.ones(1, 1), torch.ones(1, 1))))


def test_missing_labels_are_left_out_of_a_multilabel_row():
    x = _logits(2, 3)
    y = torch.tensor([[1.0, float("nan"), 0.0], [float("nan")] * 3])
    task = MultiLabel(["a", "b", "c"])
    expected = F.binary_cross_entropy_with_logits(x[0, [0, 2]], y[0, [0, 2]])
    assert torch.allclose(task.loss(x, y), torch.stack([expected, torch.zeros(())]))
    assert task.weight(y).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Classification(NAMES, loss="mse"), "cross_entropy"),
        (lambda: Regression(["y"], loss="nll"), "mse"),
        (lambda: Classification(NAMES, monitor="acuracy"), "did you mean 'accuracy'"),
        (lambda: Classification(NAMES, monitor="top5"), "more than 5 classes"),
        (lambda: Regression(["y"]).hard(torch.ones(1, 1)), "fuse=mean"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(make, says):
    with pytest.raises(Refused, match=says):
        make()


def test_the_direction_of_the_monitor():
    assert Classification(NAMES).maximize
    assert not Classification(NAMES, monitor="nll").maximize
    assert Regression(["y"]).monitor == "r2"
    assert not Regression(["y"], monitor="rmse").maximize


def test_losses_for_wrong_labels_by_hand():
    """GCE (1 - p^q) / q; bootstrapping with the model's own class, and with its probabilities."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 0.0]])
    target = torch.tensor([1, 1, -1])
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    expected = torch.stack([(1 - p[0, 1] ** 0.7) / 0.7, (1 - p[1, 1] ** 0.7) / 0.7, torch.tensor(0.0)])
    assert torch.allclose(Classification("abc", loss="gce").loss(logits, target), expected)
    assert torch.allclose(Classification("abc", loss="gce", q=1.0).loss(logits, target)[0], 1 - p[0, 1])
    near = Classification("abc", loss="gce", q=1e-4).loss(logits, target)[:2]
    assert torch.allclose(near, -log_p[[0, 1], [1, 1]], atol=1e-3)
    hard = Classification("abc", loss="bootstrap").loss(logits, target)
    assert torch.allclose(hard, torch.stack([-0.8 * log_p[0, 1] - 0.2 * log_p[0, 0], -log_p[1, 1], torch.tensor(0.0)]))
    soft = Classification("abc", loss="bootstrap", beta=0.95, hard=False).loss(logits, target)
    assert torch.allclose(soft[0], -0.95 * log_p[0, 1] - 0.05 * (p[0] * log_p[0]).sum())


def test_a_wrong_label_pulls_less_on_a_sure_model_than_with_cross_entropy():
    def pull(loss: str) -> float:
        logits = torch.tensor([[6.0, 0.0]], requires_grad=True)
        Classification("ab", loss=loss).loss(logits, torch.tensor([1])).sum().backward()
        return float(logits.grad.norm())

    assert pull("gce") < 0.05 * pull("cross_entropy")
    assert pull("bootstrap") < pull("cross_entropy")


def test_pinball_loss_by_hand_and_its_best_constant():
    task = Regression(["y q0.1", "y q0.9"], loss="quantile", quantiles=[0.1, 0.9])
    logits, target = torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    # Below the truth by 1: 0.1 and 0.9; above it by 1: 0.9 and 0.1; means of both.
    assert task.loss(logits, target).tolist() == pytest.approx([0.5, 0.5])
    task = Regression(["y"], loss="quantile", quantiles=[0.9])
    assert task.loss(logits[:, :1], target[:, :1]).tolist() == pytest.approx([0.9, 0.1])
    many = torch.arange(101.0)[:, None]
    assert task.constant(many).item() == pytest.approx(90)
    grid = torch.arange(0, 101.0, 0.5)
    costs = torch.stack([task.loss(g.expand(101, 1), many).mean() for g in grid])
    assert grid[costs.argmin()].item() == pytest.approx(90, abs=0.5)


def test_absolute_error_in_standard_units_of_each_output():
    task = Regression(["a", "b"], mean=torch.tensor([0.0, 10.0]), std=torch.tensor([1.0, 100.0]), loss="mae")
    got = task.loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 10.0]]))
    assert got.tolist() == pytest.approx([(2 + 1) / 2])
    assert task.loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[math.nan, 10.0]])).tolist() == pytest.approx([1])


@pytest.mark.parametrize("quantiles", [[], [0.5, 0.1], [0, 0.5], [0.5, 1], [0.5, 0.5], ["a"]])
def test_quantiles_that_are_none(quantiles):
    with pytest.raises(Refused, match="must rise between 0 and 1"):
        check_quantiles(quantiles)


def test_the_middle_quantile_stands_for_the_value():
    names = [f"{v} q{q}" for v in "ab" for q in (0.05, 0.4, 0.95)]
    task = Regression(names, loss="quantile", quantiles=[0.05, 0.4, 0.95])
    assert task.middle == [1, 4]
    assert (task.monitor, task.maximize) == ("loss", False)
    with pytest.raises(Refused, match="quantiles of each value"):
        Regression(names[:4], loss="quantile", quantiles=[0.05, 0.4, 0.95])
