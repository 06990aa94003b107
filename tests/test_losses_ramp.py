"""Numbers that change while a fit goes on, and what they make of a term's weight."""

from __future__ import annotations

import pytest
import torch

from sftc.device import Device
from sftc.errors import Refused
from sftc.losses import Correlation, Decoupled, Ramp, Soft, Truth
from sftc.objective import Learner, Objective
from sftc.tasks import Classification
from sftc.types import Batch


def test_a_ramp_without_an_end_is_constant():
    assert [Ramp(3)(p) for p in (0.0, 0.4, 1.0)] == [3.0] * 3


@pytest.mark.parametrize(
    ("shape", "expected"), [("linear", [2.0, 3.0, 4.0, 5.0, 6.0]), ("cosine", [2.0, 2.585786, 4.0, 5.414214, 6.0])]
)
def test_a_ramp_goes_from_start_to_end_in_its_shape(shape, expected):
    ramp = Ramp(2, 6, shape)
    assert [ramp(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(expected, abs=1e-6)


def test_a_ramp_ends_exactly_and_stands_still_outside():
    ramp = Ramp(4, 0.1)
    assert ramp(1.0) == ramp(1.5) == 0.1  # 4 + (0.1 - 4) is a little more
    assert ramp(-0.5) == 4


def test_an_unknown_shape_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean 'linear'"):
        Ramp(1, 2, "linaer")


@pytest.mark.parametrize("bad", [0, -1.0, Ramp(4, 0), Ramp(0, 4), float("nan")])
@pytest.mark.parametrize("term", [Soft, Decoupled, Correlation])
def test_a_temperature_must_stay_above_zero(term, bad):
    with pytest.raises(Refused, match="above 0"):
        term(temperature=bad)


def test_a_term_counts_what_its_weight_says_now():
    assert Truth(0.25).share(0.9) == 0.25
    assert Truth(Ramp(1, 0)).share(0.75) == 0.25


def _loss(weight, progress: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, part and gradient of one linear layer."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3)
    batch = Batch(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))
    learner = Learner(net, Classification(["a", "b", "c"]), terms={"truth": Truth(weight)})
    objective = Objective([learner], Device("cpu", threads=1))
    step = objective([batch], objective.totals([batch]), progress)
    step.loss.backward()
    return step.loss.detach(), step.parts["truth"], net.weight.grad


def test_the_objective_asks_for_the_weight_at_the_progress_of_the_step():
    loss, part, grad = _loss(Ramp(1, 0), 0.75)
    whole, _, full = _loss(1, 0.75)
    assert loss == 0.25 * whole
    assert part == whole  # a part is logged as it is, before its weight
    assert torch.allclose(grad, 0.25 * full)


def test_a_weight_of_one_changes_no_bit():
    loss, part, _ = _loss(1.0, 0.5)
    assert loss == part
    assert torch.equal(_loss(Ramp(1), 0.5)[2], _loss(1, 0.5)[2])
