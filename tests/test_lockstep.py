"""Members run as one stacked model end as those trained one after another; and which way `auto` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from problems import After, config, lab, told
from sftc import build
from sftc.build import parts
from sftc.errors import Refused, Stopped
from sftc.lab import Lab, Watch
from sftc.models.stacked import Stacked
from sftc.objective import Learner
from sftc.store import Run
from sftc.strategies import lockstep

TEAM = ("strategy=ensemble", "strategy.n=3", "data.eval_limit=64", "optim.lr=0.01")
VMAP, AUTO = "strategy.lockstep=vmap", "strategy.lockstep=auto"
TWENTY = ("epochs=9", "max_steps=20")  # three steps an epoch
CNN = ("model=simple_cnn", "model.batch_norm=true", "model.hidden=[16]")
RARE = ("patience=1", "optim.lr=0.1", "data.eval_limit=16")


def members(run: Run) -> list[Run]:
    return [Run(path) for path in sorted((run.path / "members").iterdir())]


def furthest(one: Run, two: Run) -> float:
    """The largest difference of any weight of any member, best and last, which end alike."""
    out = []
    for a, b in zip(members(one), members(two), strict=True):
        for which in ("model", "last"):
            x, y = a.weights(which), b.weights(which)
            out += [float((x[k].double() - y[k].double()).abs().max()) for k in x]
        assert a.result["ended"] == b.result["ended"]
        assert [a.result[w][k] for w in ("best", "last") for k in ("epoch", "step")] == [
            b.result[w][k] for w in ("best", "last") for k in ("epoch", "step")
        ]
    return max(out)


@pytest.fixture
def stacks(monkeypatch):
    """Which members ran as one, forward by forward."""
    seen: list[tuple[int, ...]] = []
    inner = Stacked.__call__
    monkeypatch.setattr(Stacked, "__call__", lambda self, which, x: seen.append(tuple(which)) or inner(self, which, x))
    return seen


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("clip=0.05", "ema=0.9", "strategy.members=bagging"),
        (*RARE, "ema=0.5"),
        pytest.param((*CNN, "micro_batch_size=20"), marks=pytest.mark.slow),
        pytest.param(
            ("strategy.each=[{optim.lr:0.1},{optim:lamb,clip:0.1},{optim:sgd,schedule:step}]",), marks=pytest.mark.slow
        ),
        pytest.param(("finetune=gradual", "finetune.every=2", "penalty.l2_sp=0.1"), marks=pytest.mark.slow),
        pytest.param(("semi=mean_teacher", "data.unlabeled=0.5"), marks=pytest.mark.slow),
    ],
)
def test_stacked_members_end_as_separate_ones_to_a_billionth(tmp_path, more, monkeypatch, stacks):
    fresh = Lab.model
    monkeypatch.setattr(Lab, "model", lambda lab: fresh(lab).double())
    one = told(tmp_path / "one", *TEAM, *TWENTY, *more)
    assert not stacks
    two = told(tmp_path / "two", *TEAM, *TWENTY, *more, VMAP)
    assert furthest(one, two) < 1e-9
    ends = {m.result["last"]["step"] for m in members(two)}
    assert max(ends) == 20 or RARE[0] in more
    if RARE[0] in more:
        assert len(ends) > 1  # one rests while others go on, without it
        assert {len(which) for which in stacks} > {3}
    else:
        assert set(stacks) == {(0, 1, 2)}
        assert len(stacks) > 20  # all steps, and not the trial alone


@pytest.mark.parametrize("more", [(), (*CNN, "optim=sgd", "clip=0.1")])
def test_one_step_in_single_precision(tmp_path, more, stacks):
    one = told(tmp_path / "one", *TEAM, *more, "max_steps=1")
    two = told(tmp_path / "two", *TEAM, *more, "max_steps=1", VMAP)
    assert furthest(one, two) < 1e-5
    assert len(stacks) > 1


def test_stopped_in_the_middle_a_stack_goes_on_to_the_same_bits(tmp_path, stacks):
    more = (*TEAM, *CNN, *RARE, "epochs=8", "ema=0.5", "checkpoint.steps=2", VMAP)
    whole = told(tmp_path / "whole", *more)
    assert {len(which) for which in stacks} > {3}
    for steps in (2, 11):
        with pytest.raises(Stopped):
            told(tmp_path / f"cut{steps}", *more, stop=After(steps))
        assert furthest(whole, told(tmp_path / f"cut{steps}")) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("model.dropout=0.2",), r"dropout \(p=0.2\)"),
        (("strategy.members=models", "strategy.models=[mlp,linear]"), "another model than member 0"),
        (("strategy.each=[{},{finetune:head}]",), "member 1 has another finetune"),
        (("strategy.members=folds",), "follow one another"),
        (("strategy.each=[{epochs:1}]",), "have the same epochs"),
        (("device.compile=true",), "device.compile=false"),
    ],
)
def test_what_cannot_be_stacked_is_refused_before_anything_is_kept(tmp_path, more, said):
    overrides = ("data.limit=96", "device.threads=1", "quiet=true", "model=mlp", *TEAM, VMAP, *more)
    with pytest.raises(Refused, match=said) as why:
        build.train(config(*overrides), tmp_path / "run", list(overrides), "sftc train")
    assert "\n" not in str(why.value)
    assert "leave" in str(why.value) or "it is for" in str(why.value) or "set strategy.lockstep=true" in str(why.value)
    assert not (tmp_path / "run").exists()


class OnceChosen(After):
    """Rises in the second step after the way is written down."""

    def __init__(self, run: Path) -> None:
        super().__init__(2)
        self.run = Run(run)

    def __call__(self) -> Stopped | None:
        return None if self.run.config["strategy"]["lockstep"] == "auto" else super().__call__()


def test_auto_takes_the_fastest_writes_it_down_and_times_no_more(tmp_path, monkeypatch):
    """The clock says what the test wants; the steps that it times are real."""
    clock: list[tuple[int, bool]] = []
    times = {(1, False): 1.0, (3, False): 2.5, (3, True): 2.0}
    timed = lockstep.seconds_per_step

    def seconds(lab: Lab, made: list[Learner]) -> float:
        assert timed(lab, made) > 0
        clock.append((len(made), made[0].stacked))
        return times[clock[-1]]

    monkeypatch.setattr(lockstep, "seconds_per_step", seconds)
    with pytest.raises(Stopped):
        told(tmp_path / "run", *TEAM, AUTO, stop=OnceChosen(tmp_path / "run"))
    run = Run(tmp_path / "run")
    assert run.config["strategy"]["lockstep"] == "vmap"
    assert set(clock) == set(times)
    assert run.environment["notes"][-1].endswith("false 3e+03, true 2.5e+03, vmap 2e+03")
    clock.clear()
    again = told(tmp_path / "run")
    assert clock == []
    assert furthest(again, told(tmp_path / "vmap", *TEAM, VMAP)) == 0


def test_auto_goes_without_what_cannot_be(tmp_path):
    class Hears(Watch):
        said: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.said.append(line)

    home = lab(tmp_path / "run", *TEAM, "model.dropout=0.2", AUTO, watch=Hears())
    parts.strategy(home.run.config).run(home)
    assert "leaves one way out: lockstep=vmap: net.fc1.2 is dropout" in Hears.said[0]
    assert home.run.config["strategy"]["lockstep"] in (True, False)
    assert Hears.said[1] == home.run.environment["notes"][-1]
    assert "vmap" not in Hears.said[1]
