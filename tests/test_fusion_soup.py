"""Averages of weights: what is averaged, what is copied, what is refused; barriers, greedy soups, BatchNorm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sftc.errors import Refused
from sftc.fusion import soup


def state(*numbers: float, steps: int = 0) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(numbers, dtype=torch.float32), "steps": torch.tensor(steps)}


def test_floats_are_averaged_in_float64_and_counters_copied_from_the_first():
    big, tiny = torch.tensor([1e8]), torch.tensor([1.0])
    states = [{"w": big}, {"w": tiny}, {"w": -big}]  # in float32 the 1 would be lost
    assert soup.average(states)["w"].tolist() == pytest.approx([1 / 3])
    mixed = soup.average([state(0, 2, steps=7), state(4, 2, steps=9)], [1, 3])
    assert mixed["w"].tolist() == [3, 2]
    assert mixed["w"].dtype == torch.float32
    assert mixed["steps"].item() == 7
    half = soup.average([{"w": torch.ones(2).half()}, {"w": torch.zeros(2).half()}])
    assert half["w"].dtype == torch.float16


def test_an_average_shares_no_memory_with_its_parts():
    one = state(1, 2)
    mixed = soup.average([one])
    mixed["w"] += 1
    mixed["steps"] += 1
    assert one["w"].tolist() == [1, 2]
    assert one["steps"].item() == 0


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ([state(1), {"w": torch.ones(1), "b": torch.ones(1)}], None, "0 and 1 .* differ in b, steps"),
        ([state(1), state(1), state(1, 2)], None, r"0 and 2 .* w \(1,\) and \(2,\)"),
        ([], None, "one model at least"),
        ([state(1), state(2)], [1], "each of 2 models"),
        ([state(1), state(2)], [1, -1], "not all zero"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(states, weights, message):
    with pytest.raises(Refused, match=message):
        soup.average(states, weights)


def test_a_barrier_is_the_deepest_fall_below_the_line_between_the_ends():
    valley = {0.0: 0.9, 1.0: 0.8, 2.0: 0.3, 3.0: 0.6, 4.0: 0.7}
    found = soup.barrier(state(0), state(4), lambda s: valley[float(s["w"])])
    assert found["share"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["score"] == list(valley.values())
    assert found["barrier"] == pytest.approx(0.8 - 0.3)
    assert soup.barrier(state(0), state(4), lambda s: -float((s["w"] - 2) ** 2))["barrier"] == 0
    with pytest.raises(Refused, match="3 or more"):
        soup.barrier(state(0), state(4), lambda s: 0.0, points=2)


def test_a_greedy_soup_goes_by_score_and_takes_only_what_does_no_harm():
    near = lambda s: -abs(float(s["w"]) - 1)  # noqa: E731
    states = [state(9.0), state(0.5), state(1.7), state(-9.0)]
    mixed, chosen, score = soup.greedy(states, [near(s) for s in states], near)
    assert chosen == [1, 2]
    assert mixed["w"].tolist() == pytest.approx([1.1])
    assert score == pytest.approx(-0.1)
    ties = soup.greedy([state(1.0), state(1.0)], [0.5, 0.5], near)
    assert ties[1] == [0, 1]  # no worse is good enough
    with pytest.raises(Refused, match="one each"):
        soup.greedy(states, [1.0], near)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(4))


def test_statistics_are_the_plain_mean_over_batches_whatever_stood_there():
    model = normed()
    model[1].running_mean.fill_(99)
    model.train()
    model[0].eval()
    batches = [torch.randn(8, 3) + i for i in range(3)]
    soup.reestimate(model, iter(batches))
    with torch.no_grad():
        hidden = [model[0](b) for b in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-6)
    assert torch.allclose(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0), atol=1e-6)
    # Without dropout before it, the second norm sees mean 0 and variance 1.
    assert torch.allclose(model[3].running_mean, torch.zeros(4), atol=1e-5)
    assert [m.training for m in model] == [False, True, True, True]
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)


def test_without_a_batch_statistics_stay_and_it_is_refused():
    model = normed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Refused, match="no batch"):
        soup.reestimate(model, [])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_only_models_with_statistics_need_them():
    assert soup.needs_statistics(normed())
    assert not soup.needs_statistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)))
    assert not soup.needs_statistics(nn.BatchNorm1d(2, track_running_stats=False))
    soup.reestimate(nn.Linear(2, 2), [])  # nothing to do, nothing to refuse
