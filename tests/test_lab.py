"""The seams that every strategy will use, shown by one that uses them all: killed anywhere, it ends the same."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from problems import After, lab, untimed
from sftc.errors import Refused, Stopped
from sftc.losses import Truth
from sftc.objective import Peer
from sftc.store import Run
from sftc.types import Term


class Soft(Term):
    def forward(self, view):
        return view.task.distance(view.student.logits, view.teachers[0].logits, 2.0)


class Hint(Term):
    """Match a teacher's layer through a projector that the first batch sizes and that is never saved with the model."""

    student_taps = teacher_taps = ("net.fc1",)

    def prepare(self, view):
        widths = view.student.features["net.fc1"].shape[1], view.teachers[0].features["net.fc1"].shape[1]
        self.projector = nn.Linear(*widths)

    def forward(self, view):
        student, teacher = (o.features["net.fc1"] for o in (view.student, view.teachers[0]))
        return ((self.projector(student) - teacher) ** 2).mean(1)


class Everything:
    """Two learners and a teacher; a projector, row weights, repeated rows, half of them unlabelled."""

    def __init__(self, teacher: str) -> None:
        self.teacher = teacher

    def run(self, lab):
        taught = lab.teacher(self.teacher, ["net.fc1"])
        peer = lab.fork("peer", seed=lab.seed + 1)
        rows = lab.data.splits["train"].rows
        weight = torch.linspace(0.5, 2.0, int(rows.max()) + 1)
        students = [
            lab.learner(
                home.model(),
                terms={"truth": Truth(0.5), "soft": Soft(0.5), "hint": Hint(0.1)},
                teachers=[taught, Peer(other)],
                row_weight=weight,
                name=name,
            )
            for home, name, other in ((lab, "main", "peer"), (peer, "peer", "main"))
        ]
        main, second = lab.fit(*students, rows=torch.cat([rows, rows[:20]]))
        peer.keep(second)
        lab.keep(main)


OPTIONS = (
    "data.unlabeled=0.5",
    "model.dropout=0.3",
    "ema=0.9",
    "clip=1",
    "micro_batch_size=20",
    "epochs=3",
    "penalty.l1=1e-5",
    "finetune=gradual",
)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    from sftc.strategies.plain import Plain

    home = lab(tmp_path_factory.mktemp("teacher") / "run", "model.hidden=[24]")
    Plain().run(home)
    return str(home.run.path)


@pytest.fixture(scope="session")
def whole(teacher, tmp_path_factory):
    home = lab(tmp_path_factory.mktemp("whole") / "run", *OPTIONS)
    Everything(teacher).run(home)
    return home.run.path


def weights(path):
    return {
        f"{m}{n}": t
        for m in ("", "members/peer/")
        for w in ("model", "last")
        for n, t in Run(path / m).weights(w).items()
    }


@pytest.mark.parametrize("steps", [[1], [3], [4, 3], [2, 2, 2, 2, 2], [11]])
def test_stopped_and_resumed_it_ends_bit_identical(steps, whole, teacher, tmp_path):
    for n in steps:
        home = lab(tmp_path / "run", *OPTIONS, stop=After(n))
        with pytest.raises(Stopped):
            Everything(teacher).run(home)
    Everything(teacher).run(lab(tmp_path / "run"))
    expected, got = weights(whole), weights(tmp_path / "run")
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[k], v) for k, v in expected.items())
    assert untimed(Run(whole)) == untimed(Run(tmp_path / "run"))


class Crash(After):
    """A process that dies between two steps: nothing is saved, not even the step that was done."""

    def __call__(self):
        if super().__call__() is not None:
            raise MemoryError


@pytest.mark.parametrize("steps", [[2], [6, 5], [4, 1, 4, 4]])
def test_dead_and_resumed_from_the_last_epoch_it_ends_bit_identical(steps, whole, teacher, tmp_path):
    for n in steps:
        home = lab(tmp_path / "run", *OPTIONS, stop=Crash(n))
        with pytest.raises(MemoryError):
            Everything(teacher).run(home)
    Everything(teacher).run(lab(tmp_path / "run"))
    expected, got = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(got[k], v) for k, v in expected.items())
    assert [r["epoch"] for r in Run(tmp_path / "run").rows()] == [0, 1, 2]


@pytest.mark.parametrize("spoil", ["avoid", "moment"])
def test_the_comparison_sees_a_spoiled_state(spoil, whole, teacher, tmp_path):
    home = lab(tmp_path / "run", *OPTIONS, stop=After(4))
    with pytest.raises(Stopped):
        Everything(teacher).run(home)
    state = home.run.checkpoints.read()
    if spoil == "avoid":
        state["avoid"] = [state["step"]]
    else:
        moments = state["trainees"][0]["optimizer"]["state"]
        next(iter(moments.values()))["exp_avg"] += 1e-3
    home.run.checkpoints.write(state)
    Everything(teacher).run(lab(tmp_path / "run"))
    expected, got = weights(whole), weights(tmp_path / "run")
    assert not all(torch.equal(got[k], v) for k, v in expected.items())


def test_what_is_kept_is_the_student_alone_and_opens_by_itself(whole, teacher):
    run = Run.open(whole)
    assert not any("projector" in k or "teacher" in k for k in run.weights())
    peer = Run.open(whole / "members" / "peer")
    assert peer.config["seed"] == run.config["seed"] + 1
    assert peer.config["strategy"] == {"name": "plain"}
    assert peer.finished
    assert peer.result["val"].keys() == run.result["val"].keys()
    assert (run.path / "checkpoint").exists() is False


def test_every_part_of_the_loss_is_logged(whole):
    row = Run(whole).rows()[0]
    assert {f"train/{n}/{t}" for n in ("main", "peer") for t in ("truth", "soft", "hint", "l1")} <= row.keys()
    parts = sum(
        row[f"train/{n}/{t}"] * w
        for n in ("main", "peer")
        for t, w in (("truth", 0.5), ("soft", 0.5), ("hint", 0.1), ("l1", 1))
    )
    assert row["train/loss"] == pytest.approx(parts, rel=1e-5)


def test_the_teacher_is_as_it_was(whole, teacher):
    assert Run(teacher).result["fingerprints"]["model"] == _hash(teacher)


def _hash(path):
    from sftc.store import hash_tensors

    return hash_tensors(Run(path).weights())


def test_a_finished_run_is_not_trained_again(whole, teacher):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    home = lab(whole)
    home.keep(object())  # type: ignore[arg-type]
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_the_result_says_which_weights_it_is_about(teacher):
    run = Run(teacher)
    result = json.loads((run.path / "result.json").read_text())
    assert result["best"]["val"] == pytest.approx(result["val"], abs=1e-6)
    assert result["last"]["epoch"] == 1
    assert {"val", "test"} <= result["last"].keys()
    assert result["params"] == sum(t.numel() for t in run.weights().values())
    predictions, mark = run.predictions("test")
    accuracy = (predictions.scores.argmax(1) == predictions.target).float().mean().item()
    assert accuracy == pytest.approx(result["test"]["accuracy"], abs=1e-6)
    assert mark["model"] == _hash(teacher)


def test_a_restored_model_predicts_what_is_stored(teacher, tmp_path):
    home = lab(tmp_path / "x").open(teacher)
    predictions, metrics, _ = home.measure(home.restore(), "val")
    stored, _ = home.run.predictions("val")
    assert torch.equal(predictions.scores, stored.scores)
    assert metrics == pytest.approx(home.run.result["val"], abs=0)


def test_weights_that_do_not_fit_are_refused(teacher, tmp_path):
    home = lab(tmp_path / "x")
    home.run.write_weights("model", Run(teacher).weights())
    with pytest.raises(Refused, match="do not fit"):
        home.restore()


def test_first_weights_follow_the_runs_seed_alone(tmp_path):
    a, b, c = (lab(tmp_path / n, f"seed={s}") for n, s in (("a", 0), ("b", 0), ("c", 1)))
    torch.manual_seed(99)
    x, y, z = (next(h.model().parameters()) for h in (a, b, c))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)
