"""Boosting's arithmetic against scikit-learn, and its rules for stopping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sftc.errors import Refused
from sftc.fusion.boosting import r2, samme


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_samme_weighs_rows_and_members_as_scikit_learn_does():
    from sklearn.datasets import load_iris
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    x, y = load_iris(return_X_y=True)
    stump = DecisionTreeClassifier(max_depth=1, random_state=0)
    boosted = AdaBoostClassifier(stump, n_estimators=4, learning_rate=0.7, random_state=0).fit(x, y)
    weight = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
    for m, member in enumerate(boosted.estimators_):
        done = samme(weight, torch.from_numpy((member.predict(x) != y).astype(float)), 3, rate=0.7)
        assert done.weight == pytest.approx(boosted.estimator_weights_[m])
        assert done.error == pytest.approx(boosted.estimator_errors_[m])
        assert float(done.row_weight.sum()) == pytest.approx(1)
        weight = done.row_weight


@pytest.mark.parametrize("loss", ["linear", "square", "exponential"])
def test_r2_weighs_rows_and_members_as_scikit_learn_does(loss):
    from sklearn.ensemble import AdaBoostRegressor

    class Fixed:
        def __init__(self, said):
            self.said = said

        def predict(self, x):
            return self.said

    y = np.random.default_rng(0).normal(size=50)
    said = y + np.random.default_rng(1).exponential(size=50) ** 2 * 0.2
    boosted = AdaBoostRegressor(learning_rate=0.8, loss=loss)
    w = np.random.default_rng(2).random(50)
    w /= w.sum()
    boosted._make_estimator = lambda **_: Fixed(said)
    Fixed.fit = lambda self, x, y: self
    expected, weight, error = boosted._boost(0, np.zeros((50, 1)), y, w.copy(), np.random.RandomState(0))
    done = r2(torch.from_numpy(w), torch.from_numpy(np.abs(said - y)), loss, rate=0.8)
    assert done.weight == pytest.approx(weight)
    assert done.error == pytest.approx(error)
    assert np.allclose(done.row_weight, expected / expected.sum())


def test_samme_stops_at_the_error_of_guessing_and_not_before():
    four = torch.full((8,), 0.5)
    guess = samme(four, tensor(1, 1, 1, 1, 1, 1, 0, 0), classes=4)
    assert (guess.stop, guess.weight, guess.error) == ("chance", 0, 0.75)
    assert torch.equal(guess.row_weight, four)
    above = samme(four, tensor(1, 1, 1, 1, 1, 0, 0, 0), classes=4)  # 62 % wrong is good enough of four classes
    assert above.stop is None
    assert above.weight == pytest.approx(math.log(3 / 5) + math.log(3))
    assert samme(four, tensor(1, 1, 1, 1, 0, 0, 0, 0), classes=2).stop == "chance"
    assert float(above.row_weight.sum()) == pytest.approx(4)
    assert float(above.row_weight[0] / above.row_weight[7]) == pytest.approx(math.exp(above.weight))


def test_a_member_without_error_is_kept_and_counts_more_than_any_with_one():
    weight = torch.full((100,), 0.01)
    one = torch.zeros(100)
    one[0] = 1
    perfect, nearly = samme(weight, torch.zeros(100), 3), samme(weight, one, 3)
    assert perfect.stop == "perfect"
    assert nearly.stop is None
    assert math.isfinite(perfect.weight)
    assert perfect.weight > nearly.weight
    perfect = r2(weight, torch.zeros(100))
    assert perfect.stop == "perfect"
    assert math.isfinite(perfect.weight)
    assert torch.equal(perfect.row_weight, weight)


def test_r2_stops_at_a_mean_loss_of_a_half():
    assert r2(torch.ones(4), tensor(1, 1, 0, 0)).stop == "chance"
    assert r2(torch.ones(5), tensor(1, 1, 0, 0, 0)).stop is None
    with pytest.raises(Refused, match="did you mean 'square'"):
        r2(torch.ones(4), tensor(1, 1, 0, 0), "sqare")


def test_unlabelled_rows_and_rows_of_weight_zero_count_nothing_and_keep_their_weight():
    weight = tensor(1, 1, 1, 1, 5, 0)
    miss = tensor(1, 0, 0, 0, math.nan, 1)
    done, few = samme(weight, miss, 3), samme(weight[:4], miss[:4], 3)
    assert done.weight == few.weight
    assert torch.allclose(done.row_weight, torch.cat([few.row_weight, tensor(5, 0)]))
    error = tensor(0.1, 0.2, 0.3, 1, math.nan, 99)
    done, few = r2(weight, error), r2(weight[:4], error[:4])
    assert done.weight == few.weight
    assert torch.allclose(done.row_weight, torch.cat([few.row_weight, tensor(5, 0)]))
    with pytest.raises(Refused, match="no labelled row"):
        samme(torch.zeros(3), torch.zeros(3), 3)
