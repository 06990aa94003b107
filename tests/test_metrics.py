"""Streams of batches against scikit-learn on everything at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk

from sftc.metrics import pieces
from sftc.tasks import Classification, MultiLabel, Regression


def _stream(task, logits, target, weight=None, size=7, full=True):
    meter = task.meter(full)
    for i in range(0, len(logits), size):
        meter.update(logits[i : i + size], target[i : i + size], None if weight is None else weight[i : i + size])
    return meter


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(0)
    return torch.randn(101, 7, generator=g) * 2, torch.randint(7, (101,), generator=g)


def test_classification_agrees_with_scikit_learn(rows):
    x, y = rows
    m = _stream(Classification("abcdefg"), x, y).compute()
    p = x.double().softmax(1).numpy()
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)), abs=1e-6)
    assert m["f1"] == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"), abs=1e-6)
    assert m["top5"] == pytest.approx(sk.top_k_accuracy_score(y, p, k=5), abs=1e-6)
    assert m["nll"] == pytest.approx(sk.log_loss(y, p, labels=range(7)), abs=1e-6)
    assert m["loss"] == pytest.approx(m["nll"], abs=1e-5)
    one_hot = np.eye(7)[y]
    assert m["brier"] == pytest.approx(float(((p - one_hot) ** 2).sum(1).mean()), abs=1e-6)


def test_brier_of_two_classes_is_twice_scikit_learns():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    y = torch.arange(50) % 2
    m = _stream(Classification("ab"), x, y).compute()
    assert m["brier"] == pytest.approx(2 * sk.brier_score_loss(y, x.softmax(1)[:, 1]), abs=1e-6)
    assert "top5" not in m


def test_per_class_table_agrees_with_scikit_learn(rows):
    x, y = rows
    table = _stream(Classification("abcdefg"), x, y).per_class()
    p, r, f, n = sk.precision_recall_fscore_support(y, x.argmax(1), labels=range(7), zero_division=0)
    for i, name in enumerate("abcdefg"):
        assert table[name]["precision"] == pytest.approx(p[i])
        assert table[name]["recall"] == pytest.approx(r[i])
        assert table[name]["f1"] == pytest.approx(f[i])
        assert table[name]["rows"] == n[i]


def test_a_class_that_is_neither_true_nor_said_counts_in_no_mean(rows):
    x, y = rows
    y = y % 5
    x[:, 6] = -99.0
    m = _stream(Classification("abcdefg"), x, y)
    assert m.compute()["f1"] == pytest.approx(sk.f1_score(y, x.argmax(1), average="macro"), abs=1e-6)
    assert m.per_class()["g"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0}


def test_top5_of_equal_scores_is_no_gift():
    y = torch.arange(10)
    assert _stream(Classification("abcdefghij"), torch.zeros(10, 10), y).compute()["top5"] == 0.5


def test_ece_is_that_of_torchmetrics(rows):
    x, y = rows
    x[:5] = 0
    x[5:9, 2] = 200.0  # sure to the last bit
    theirs = torchmetrics.functional.calibration_error(x.softmax(1), y, "multiclass", n_bins=15, num_classes=7)
    assert _stream(Classification("abcdefg"), x, y).compute()["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_ece_of_a_certain_and_wrong_model_is_one():
    m = _stream(Classification("ab"), torch.tensor([[50.0, -50.0]] * 8), torch.ones(8, dtype=torch.long)).compute()
    assert m["ece"] == pytest.approx(1.0, abs=1e-4)


def test_batches_pieces_padding_and_unlabelled_rows_do_not_show(rows, monkeypatch):
    x, y = rows
    whole = _stream(Classification("abcdefg"), x, y, size=101).compute()
    monkeypatch.setattr(pieces, "PIECE", 10)
    padded = torch.cat([x, torch.full((9, 7), 99.0)])
    target = torch.cat([y, torch.tensor([0] * 5 + [-1] * 4)])
    weight = torch.cat([torch.ones(101), torch.zeros(5), torch.ones(4)])
    again = _stream(Classification("abcdefg"), padded, target, weight).compute()
    assert again == pytest.approx(whole, abs=1e-6)


def test_dense_targets_count_positions_not_rows():
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    y = x.argmax(1)
    y[0, 0] = -1
    m = _stream(Classification("abcd"), x, y, size=2).compute()
    assert m["accuracy"] == 1.0
    flat = x.movedim(1, -1).reshape(-1, 4)[y.flatten() >= 0].double()
    assert m["nll"] == pytest.approx(float(-flat.log_softmax(1).max(1).values.mean()), abs=1e-6)


def test_class_weights_weigh_the_loss_and_nothing_else(rows):
    x, y = rows
    w = torch.arange(1.0, 8.0)
    m = _stream(Classification("abcdefg", class_weight=w), x, y).compute()
    plain = _stream(Classification("abcdefg"), x, y).compute()
    assert m["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(x, y, weight=w)), abs=1e-5)
    assert m["nll"] == plain["nll"]


def test_values_agree_with_scikit_learn():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(40, 2, generator=g) * 10 + 1e4
    task = Regression(["u", "v"], mean=y.mean(0), std=y.std(0))
    x = (y - y.mean(0)) / y.std(0) + torch.randn(40, 2, generator=g) * 0.3
    m = _stream(task, x, y).compute()
    p = task.scores(x)
    assert m["r2"] == pytest.approx(sk.r2_score(y, p), abs=1e-4)
    assert m["mae"] == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-4)
    assert m["rmse"] == pytest.approx(sk.root_mean_squared_error(y.flatten(), p.flatten()), rel=1e-4)
    assert math.isnan(_stream(task, x[:1], y[:1]).compute()["r2"])


def test_labels_agree_with_scikit_learn():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=g), (torch.rand(60, 3, generator=g) > 0.6).float()
    m = _stream(MultiLabel("abc"), x, y).compute()
    assert m["f1"] == pytest.approx(sk.f1_score(y, x > 0, average="macro"), abs=1e-6)
    assert m["map"] == pytest.approx(sk.average_precision_score(y, x.sigmoid(), average="macro"), abs=1e-5)
    assert m["accuracy"] == pytest.approx(float(((x > 0) == y.bool()).float().mean()), abs=1e-6)


def test_a_class_that_weighs_nothing_is_still_counted(rows):
    x, y = rows
    weighted = _stream(Classification("abcdefg", class_weight=torch.tensor([0.0, 1, 1, 1, 1, 1, 1])), x, y).compute()
    plain = _stream(Classification("abcdefg"), x, y).compute()
    assert weighted["accuracy"] == plain["accuracy"]
    assert weighted["nll"] == plain["nll"]


def test_area_under_the_curve_agrees_with_scikit_learn(rows):
    x, y = rows
    p = x.double().softmax(1).numpy()
    expected = sk.roc_auc_score(y, p, multi_class="ovr", average="macro")
    assert _stream(Classification("abcdefg"), x, y).compute()["auc"] == pytest.approx(expected, abs=1e-6)
    two, of_two = x[:, :2], y % 2
    expected = sk.roc_auc_score(of_two, two.softmax(1)[:, 1])
    task = Classification("ab", monitor="auc")
    assert task.maximize
    assert _stream(task, two, of_two).compute()["auc"] == pytest.approx(expected, abs=1e-6)
    # A class without rows counts nothing; with one class alone there is nothing to rank.
    keep = y < 3
    expected = np.mean([sk.roc_auc_score(y[keep] == c, p[keep][:, c]) for c in range(3)])
    assert _stream(Classification("abcdefg"), x[keep], y[keep]).compute()["auc"] == pytest.approx(expected, abs=1e-6)
    assert math.isnan(_stream(task, two, torch.zeros_like(y)).compute()["auc"])


def test_scores_are_ranked_where_they_are_few():
    dense = _stream(Classification("abc"), torch.randn(6, 3, 4, 4), torch.randint(3, (6, 4, 4)))
    assert "auc" not in dense.compute()
    names = [str(i) for i in range(40)]
    x, y = torch.randn(80, 40), torch.arange(80) % 40
    assert "auc" not in _stream(Classification(names), x, y).compute()
    assert "auc" in _stream(Classification(names, monitor="auc"), x, y).compute()


def test_each_of_several_outputs_agrees_with_scikit_learn():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 2, generator=g), torch.randn(50, 2, generator=g) * torch.tensor([1.0, 30.0])
    meter = _stream(Regression(["a", "b"], mean=torch.tensor([0.0, 5.0]), std=torch.tensor([1.0, 30.0])), x, y)
    scores = x * torch.tensor([1.0, 30.0]) + torch.tensor([0.0, 5.0])
    table = meter.per_class()
    for i, name in enumerate("ab"):
        assert table[name]["r2"] == pytest.approx(sk.r2_score(y[:, i], scores[:, i]), abs=1e-5)
        assert table[name]["mae"] == pytest.approx(sk.mean_absolute_error(y[:, i], scores[:, i]), abs=1e-4)
        assert table[name]["rmse"] == pytest.approx(sk.root_mean_squared_error(y[:, i], scores[:, i]), abs=1e-4)


def test_coverage_is_counted_and_the_middle_is_compared():
    task = Regression(["y q0.1", "y q0.5", "y q0.9"], loss="quantile", quantiles=[0.1, 0.5, 0.9])
    truth = torch.tensor([0.0, 1, 2, 3, 4])[:, None].expand(5, 3)
    said = torch.tensor([[-1.0, 0, 1], [0, 1, 2], [3, 4, 5], [2, 3, 4], [0, 1, 2]])
    meter = _stream(task, said, truth, size=2)
    got = meter.compute()
    assert got["coverage"] == pytest.approx(3 / 5)
    assert got["mae"] == pytest.approx((0 + 0 + 2 + 0 + 3) / 5)
    below = {name: row["coverage"] for name, row in meter.per_class().items()}
    assert below == pytest.approx({"y q0.1": 1 / 5, "y q0.5": 4 / 5, "y q0.9": 4 / 5})
