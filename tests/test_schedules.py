"""How fast weights move at each update."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from sftc import optim
from sftc.errors import Refused

SPECS = {
    "cosine": {"name": "cosine", "warmup": 1.0, "min_lr": 0.01},
    "step": {"name": "step", "warmup": 0.5, "every": 2, "gamma": 0.1},
    "milestones": {"name": "step", "warmup": 0.5, "every": 1, "at": [1, 4.5], "gamma": 0.1},
    "plateau": {
        "name": "plateau",
        "warmup": 0.5,
        "factor": 0.5,
        "patience": 1,
        "cooldown": 1,
        "threshold": 1e-4,
        "min_lr": 0.05,
    },
    "constant": {"name": "constant", "warmup": 1.5},
    "onecycle": {"name": "onecycle", "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4},
}
PER_EPOCH, EPOCHS = 5, 8
METRICS = [0.5, 0.6, 0.6, 0.59, 0.6, 0.55, 0.5, 0.4]  # an accuracy that stops getting better


def rule(rates=(0.1, 0.02)) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": r} for r in rates], lr=rates[0])


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def run(schedule: optim.Schedule, first: int, last: int) -> list[list[float]]:
    """The rates that updates `first` to `last` are made with."""
    seen = []
    for update in range(first, last):
        seen.append(rates(schedule.optimizer))
        schedule.optimizer.step()
        schedule.step(update + 1)
        if (update + 1) % PER_EPOCH == 0:
            epoch = update // PER_EPOCH
            schedule.epoch(epoch, METRICS[epoch], maximize=True)
    return seen


def whole(spec: dict) -> list[float]:
    return [r[0] for r in run(optim.schedule(spec, rule(), PER_EPOCH, EPOCHS), 0, PER_EPOCH * EPOCHS)]


def test_cosine_climbs_then_falls():
    seen = whole(SPECS["cosine"])
    for update in range(5):
        assert seen[update] == pytest.approx(0.1 * (update + 1) / 6)
    for update in range(5, 40):
        assert seen[update] == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi * (update - 5) / 35)) / 2)


def test_step_drops_every_so_many_epochs():
    seen = whole(SPECS["step"] | {"warmup": 0})
    assert seen == pytest.approx([0.1] * 10 + [0.01] * 10 + [0.001] * 10 + [0.0001] * 10)


def test_step_drops_at_the_epochs_listed_in_any_order_and_within_one():
    spec = SPECS["step"] | {"warmup": 0, "at": [6, 2, 3.4]}
    assert whole(spec) == pytest.approx([0.1] * 10 + [0.01] * 7 + [0.001] * 13 + [0.0001] * 10)
    assert whole(SPECS["step"] | {"at": None}) == whole(SPECS["step"])


def test_constant_with_warmup():
    assert whole(SPECS["constant"]) == pytest.approx([0.1 * min(1, (u + 1) / 9) for u in range(40)])


def test_plateau_is_torchs_on_the_epochs():
    ours = whole(SPECS["plateau"] | {"warmup": 0})
    alone = rule((0.1,))
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(alone, "max", 0.5, 1, 1e-4, "abs", cooldown=1, min_lr=0.05)
    right = []
    for metric in METRICS:
        right += rates(alone) * PER_EPOCH
        theirs.step(metric)
    assert ours == pytest.approx(right)
    assert right[-1] == 0.05


def test_plateau_lets_smaller_be_better():
    schedule = optim.schedule(SPECS["plateau"] | {"warmup": 0}, rule(), PER_EPOCH, EPOCHS)
    for epoch, loss in enumerate([4.0, 3.0, 2.0, 1.0, 0.5]):
        schedule.epoch(epoch, loss, maximize=False)
    assert rates(schedule.optimizer)[0] == 0.1
    for epoch, loss in enumerate([0.6, 0.7]):
        schedule.epoch(epoch, loss, maximize=False)
    assert rates(schedule.optimizer)[0] == pytest.approx(0.05)


@pytest.mark.filterwarnings("ignore")
def test_onecycle_is_torchs():
    alone = rule((0.1,))
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        alone, 0.1, 40, pct_start=0.3, div_factor=25.0, final_div_factor=1e4, cycle_momentum=False
    )
    right = []
    for _ in range(40):
        right.append(rates(alone)[0])
        alone.step()
        if len(right) < 40:
            theirs.step()
    assert whole(SPECS["onecycle"]) == pytest.approx(right)


@pytest.mark.parametrize("name", SPECS)
def test_groups_keep_their_ratio(name):
    seen = run(optim.schedule(SPECS[name], rule(), PER_EPOCH, EPOCHS), 0, 40)
    assert len({tuple(r) for r in seen}) > 1
    for first, second in seen:
        assert second == pytest.approx(first / 5)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("stop", [0, 1, 3, 17, 25, 39, 40])
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resuming_goes_on_exactly(name, stop, optimizer_first):
    straight = optim.schedule(SPECS[name], rule(), PER_EPOCH, EPOCHS)
    run(straight, 0, stop)
    file = io.BytesIO()
    torch.save({"schedule": straight.state_dict(), "optimizer": straight.optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    fresh = rule()
    if optimizer_first:  # before the schedule is built: rates already lowered must not be lowered again
        fresh.load_state_dict(stored["optimizer"])
    resumed = optim.schedule(SPECS[name], fresh, PER_EPOCH, EPOCHS)
    if not optimizer_first:
        fresh.load_state_dict(stored["optimizer"])
    resumed.load_state_dict(stored["schedule"])
    assert rates(resumed.optimizer) == rates(straight.optimizer)
    assert run(resumed, stop, 40) == run(straight, stop, 40)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("per_epoch", "epochs"), [(1, 1), (2, 1), (1, 3)])
def test_the_shortest_runs_and_going_on_past_the_end(name, per_epoch, epochs):
    schedule = optim.schedule(SPECS[name], rule(), per_epoch, epochs)
    for update in range(per_epoch * epochs + 3):
        assert all(0 <= r <= 0.1 + 1e-9 for r in rates(schedule.optimizer))
        schedule.optimizer.step()
        schedule.step(update + 1)


def test_warmup_takes_half_of_the_run_at_most():
    seen = run(optim.schedule({"name": "constant", "warmup": 5}, rule(), 10, 1), 0, 10)
    assert [r[0] for r in seen][5:] == pytest.approx([0.1] * 5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        (SPECS["cosine"] | {"min_lr": 0.2}, "min_lr=0.2 must lie between 0 and optim.lr=0.1"),
        (SPECS["step"] | {"gamma": 0}, "above 0"),
        (SPECS["step"] | {"at": []}, r"at=\[\] must list epochs above 0, or be null"),
        (SPECS["step"] | {"at": [3, "4x"]}, "must list epochs"),
        (SPECS["step"] | {"at": [0]}, "must list epochs"),
        (SPECS["plateau"] | {"factor": 1.5}, "Factor should be"),
        (SPECS["onecycle"] | {"pct_start": 1.5}, "pct_start"),
        (SPECS["onecycle"] | {"div_factor": 0.0}, "schedule=onecycle"),
    ],
)
def test_contradictions_are_refused(spec, words):
    with pytest.raises(Refused, match=words):
        optim.check({"name": "sgd", "lr": 0.1, "weight_decay": 0}, spec, {"name": "full"})
