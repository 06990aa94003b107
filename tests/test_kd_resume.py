"""A kd run stopped anywhere in its story and gone on with ends bit-identical, and so do the runs inside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from problems import After, told, untimed
from sftc.errors import Stopped
from sftc.stop import Stopper
from sftc.store import Run, hash_tensors

# Three batches of the teacher's fit and of each view that it answers, six of the student's.
SMALL = ("strategy=kd", "eval_batch_size=32", "data.eval_limit=64", "model.dropout=0.2", "model@strategy.teacher=mlp")
TAUGHT = ("strategy.teacher_epochs=1", "checkpoint.steps=2")
TAP = ("strategy.terms.hint.weight=1", "strategy.terms.hint.student=[net.fc1]", "strategy.terms.hint.teacher=[net.fc1]")
STORIES = {
    "cached": ("data.augment.crop=1", "data.views=2"),
    "live, with a projector": ("strategy.teacher_outputs=live", *TAP),
    "ramps": ("strategy.alpha_end=1", "strategy.temperature_end=5"),
    "no reuse, baseline": ("strategy.reuse=false", "strategy.baseline=true"),
    "generations": ("strategy.generations=2",),
    "rounds": ("strategy.rounds=2",),
    "mutual": ("strategy.peers=2",),
}


class Count(Stopper):
    """How often a story asks whether to stop."""

    asked = 0

    def __call__(self) -> None:
        self.asked += 1


def left(path: Path) -> dict[str, object]:
    """All that counts in a run and in those inside it, or made for it."""
    runs = [Run.open(file.parent) for file in path.parent.rglob("config.yaml")]
    return {
        str(run.path.relative_to(path.parent)): (
            run.status["state"],
            hash_tensors(run.weights()),
            hash_tensors(run.weights("last")),
            untimed(run),
        )
        for run in runs
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_stopped_anywhere_and_gone_on_with_it_ends_the_same(name: str, tmp_path: Path):
    say, count = (*SMALL, *TAUGHT, *STORIES[name]), Count()
    expected = left(told(tmp_path / "whole" / "run", *say, stop=count).path)
    points = range(2, count.asked, max(2, count.asked // 5))
    assert len(points) >= 4
    for at in points:
        out = tmp_path / str(at) / "run"
        with pytest.raises(Stopped):
            told(out, *say, stop=After(at))
        assert left_off(out), f"nothing was left to do after {at} questions"
        assert left(told(out).path) == expected


def left_off(out: Path) -> bool:
    return not Run.open(out).finished


def test_stopped_twice_in_a_row(tmp_path: Path):
    say = (*SMALL, *TAUGHT)
    expected = left(told(tmp_path / "whole" / "run", *say).path)
    for at in (2, 3, 5):  # in the teacher's fit, in its answers, in the student's fit
        with pytest.raises(Stopped):
            told(tmp_path / "cut" / "run", *say, stop=After(at))
    assert left(told(tmp_path / "cut" / "run").path) == expected


def test_the_teacher_was_finished_meanwhile_by_another_run(tmp_path: Path):
    say = (*SMALL, *TAUGHT)
    expected = left(told(tmp_path / "whole" / "run", *say).path)
    with pytest.raises(Stopped):
        told(tmp_path / "cut" / "run", *say, stop=After(2))
    (teacher,) = (Run.open(path) for path in tmp_path.glob("cut/shared/teacher-*"))
    assert not teacher.finished
    other = told(tmp_path / "cut" / "other", *say, "seed=1")
    assert teacher.finished
    got = left(told(tmp_path / "cut" / "run").path)
    assert got.pop("other") != got["run"]
    assert got == expected
    assert other.finished


def test_going_on_with_another_recipe_would_be_seen(tmp_path: Path):
    say = (*SMALL, *TAUGHT)
    expected = left(told(tmp_path / "whole" / "run", *say).path)
    with pytest.raises(Stopped):
        told(tmp_path / "cut" / "run", *say, stop=After(2))
    run = Run.open(tmp_path / "cut" / "run")
    config = run.config
    config["strategy"]["alpha"] = 0.51
    run.write_config(config)
    got = left(told(run.path).path)
    assert got.keys() == expected.keys()
    assert got["run"] != expected["run"]
