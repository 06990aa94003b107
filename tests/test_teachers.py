"""Who may teach: teachers made once and shared, and what stands at the gate."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from files import make
from killing import wait
from problems import config, lab, plain, told
from sftc.build import commands, parts
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.store import Run, hash_tensors
from sftc.store.reading import read_tensors
from test_answers import child, until

LEARNS = ("epochs=6", "optim.lr=0.01", "data.eval_limit=64")
KD = ("strategy=kd", "optim.lr=0.01", "data.eval_limit=64", "epochs=1")
MADE = (*KD, "strategy.teacher_epochs=6")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Run:
    return plain(tmp_path_factory.mktemp("one") / "teacher", "model=wide_mlp", "seed=5", *LEARNS)


@pytest.fixture(scope="session")
def three(tmp_path_factory) -> Run:
    """Knows the digits 7, 1 and 4 only, which are its classes in this order."""
    return plain(tmp_path_factory.mktemp("three") / "teacher", "data.classes=['1','4','7']", *LEARNS)


@pytest.fixture
def mine(tmp_path, teacher) -> Run:
    """A copy of the teacher, to be spoilt."""
    shutil.copytree(teacher.path, tmp_path / "mine")
    return Run.open(tmp_path / "mine")


def of(*runs: Run) -> str:
    return f"strategy.teachers=[{','.join(str(run.path) for run in runs)}]"


def trained(path: Path, *overrides: str) -> Run:
    """What `sftc train` does."""
    cfg = config(
        "device=cpu", "device.threads=1", "data.limit=96", "batch_size=32", "quiet=true", "model=mlp", *overrides
    )
    parts.check(cfg)
    commands.train(cfg, path, list(overrides), "sftc train")
    return Run.open(path)


def refused(tmp_path: Path, says: str, *overrides: str) -> None:
    """One line, and no folder."""
    with pytest.raises(Refused, match=says) as error:
        trained(tmp_path / "runs" / "run", f"out={tmp_path / 'runs' / 'run'}", *KD, *overrides)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("runs/**/config.yaml"))
    assert not (tmp_path / "runs" / "run").exists()
    assert not list(tmp_path.glob("runs/shared/*"))


def made(tmp_path: Path) -> list[Run]:
    return [Run.open(path) for path in sorted(tmp_path.glob("shared/teacher-*"))]


def test_a_teacher_is_made_once_and_its_answers_are_read_by_all_students(tmp_path):
    first = told(tmp_path / "first", *MADE)
    (teacher,) = made(tmp_path)
    written = {p: p.stat().st_mtime_ns for p in teacher.path.rglob("*.safetensors")}
    assert teacher.config["model"]["name"] == "wide_mlp"
    assert teacher.config["epochs"] == 6
    for i, say in enumerate(["strategy.temperature=1", "strategy.alpha=0.1", "seed=4", "data.views=2", "target=0.9"]):
        told(tmp_path / f"run{i}", *MADE, say)
    assert {p: p.stat().st_mtime_ns for p in teacher.path.rglob("*.safetensors")} == written
    assert len(made(tmp_path)) == 1
    assert first.reference("teacher0") == teacher.path
    for i, say in enumerate(["strategy.teacher_lr=0.02", "strategy.teacher_seed=1", "strategy.teacher_epochs=5"]):
        told(tmp_path / f"other{i}", *MADE, say)
        assert len(made(tmp_path)) == 2 + i


def test_without_reuse_it_is_a_member_of_this_run(tmp_path):
    run = told(tmp_path / "run", *MADE, "strategy.reuse=false")
    own = Run.open(run.path / "members" / "teacher")
    assert own.finished
    assert not (own.path / "reference.json").exists()
    assert not made(tmp_path)
    assert own.config["strategy"] == {"name": "plain"}
    assert own.environment["command"] == "sftc train"


def test_two_processes_at_once_make_one_teacher(tmp_path):
    """The second waits for the first."""
    lines = tmp_path / "lines"

    def student(name: str) -> None:
        home = lab(tmp_path / name, *MADE)

        def say(line: str) -> None:
            lines.open("a").write(f"{name} {line}\n")
            if "fine-tuning it first" in line:
                until(lambda: "b waiting: " in lines.read_text())

        home.watch.say = say
        parts.strategy(home.run.config).run(home)

    first = child(lambda: student("a"))
    until(lambda: lines.exists() and "fine-tuning it first" in lines.read_text())
    second = child(lambda: student("b"))
    assert [wait(first), wait(second)] == [0, 0]
    (teacher,) = made(tmp_path)
    assert len(teacher.rows()) == 6
    assert "is there already" in lines.read_text()
    assert hash_tensors(Run(tmp_path / "a").weights()) == hash_tensors(Run(tmp_path / "b").weights())


def test_who_waits_for_a_teacher_can_be_stopped(tmp_path):
    def hold() -> None:
        run = Run(tmp_path / "held")
        run.wait(lambda: None, print)
        (tmp_path / "ready").touch()
        time.sleep(60)

    pid = child(hold)
    lines: list[str] = []
    try:
        until((tmp_path / "ready").exists)
        with pytest.raises(Stopped, match="enough"):
            Run(tmp_path / "held").wait(lambda: Stopped("enough", 143) if lines else None, lines.append)
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert lines == [f"waiting: {tmp_path / 'held'} is being written by process {pid} on {socket.gethostname()}"]


def test_an_external_checkpoint_teaches_as_it_is(tmp_path, teacher):
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in teacher.weights().items()}}, file)
    external = ("model@strategy.teacher=wide_mlp", f"strategy.teacher.checkpoint={file}")
    run = told(tmp_path / "run", *KD, *external, "strategy.teacher_epochs=0")
    (own,) = made(tmp_path)
    assert own.result["ended"] == "untrained"
    assert hash_tensors(own.weights()) == hash_tensors(teacher.weights())
    assert run.result["team"][0]["val"]["accuracy"] == teacher.result["val"]["accuracy"]
    # Fine-tuned from there it is another teacher; and so it is when the file is.
    told(tmp_path / "tuned", *KD, *external)
    assert len(made(tmp_path)) == 2
    torch.save({k: 1.01 * v for k, v in teacher.weights().items()}, file)
    told(tmp_path / "again", *KD, *external, "strategy.teacher_epochs=0")
    assert len(made(tmp_path)) == 3


def test_a_head_that_was_never_trained(tmp_path, teacher):
    file = tmp_path / "weights.pt"
    torch.save({k: v for k, v in teacher.weights().items() if "head" not in k}, file)
    external = ("model@strategy.teacher=wide_mlp", f"strategy.teacher.checkpoint={file}", "strategy.teacher_epochs=0")
    refused(tmp_path, "its head was never trained", *external)
    refused(tmp_path, "its head was never trained", *external, "strategy.reuse=false")
    refused(tmp_path, "its head was never trained", "strategy.teacher_epochs=0")


def test_other_classes(tmp_path, teacher, three):
    refused(tmp_path, "has 3 classes and the data 10; it does not know", of(three))
    refused(
        tmp_path, "10 classes, the student's 3 among them.*map_classes=true", of(teacher), "data.classes=['1','4','7']"
    )
    some = ("data.classes=['7','1','4']", "data.limit=60")
    refused(tmp_path, "in another order.*map_classes=true", of(three), *some)


@pytest.mark.parametrize("outputs", ["live", "cached"])
def test_classes_are_mapped_to_the_right_columns(tmp_path, teacher, three, outputs):
    for name, run in (("all", teacher), ("three", three)):
        say = (
            "data.classes=['7','1','4']",
            "data.limit=60",
            "strategy.map_classes=true",
            f"strategy.teacher_outputs={outputs}",
        )
        home = lab(tmp_path / name, *KD, of(run), *say)
        story = parts.strategy(home.run.config)
        story.run(home)
        (asked,) = story._asked.values()
        batch = next(iter(home.source("train", train=True).epoch(0)))
        own = Bench(Device("cpu", threads=1)).open(run.path)
        columns = [own.facts.class_names.index(c) for c in ("7", "1", "4")]
        with torch.no_grad():
            expected = own.restore()(batch.inputs)[:, columns]
        assert home.facts.class_names == ["7", "1", "4"]
        assert torch.allclose(asked(batch).logits, expected, atol=0.02)
        assert home.run.result["team"][0]["val"]["accuracy"] > 0.6


def test_no_better_than_a_constant(tmp_path):
    weak = plain(tmp_path / "weak", "model=linear", "epochs=1", "optim.lr=1e-9", "data.eval_limit=64")
    refused(tmp_path, r"no better than a constant answer on validation \(accuracy 0\.\d+ against 0\.\d+\)", of(weak))
    run = told(tmp_path / "run", *KD, of(weak), "strategy.allow_weak=true")
    assert any("no better than a constant" in remark for remark in run.result["teachers"][0]["remarks"])
    # One that this run trained is told: the user sees it, and it cost time. So are generations and rounds.
    for way in ("generations=1", "generations=3", "rounds=2"):
        lines: list[str] = []
        home = lab(tmp_path / way, *KD, f"strategy.{way}", "optim.lr=1e-9", "model=linear")
        home.watch.say = lines.append
        parts.strategy(home.run.config).run(home)
        assert any("no better than a constant" in line for line in lines)


def test_unfinished_missing_and_changed(tmp_path, mine):
    refused(tmp_path, "does not exist; did you mean.*mine", f"strategy.teachers=[{tmp_path / 'mini'}]")
    run = told(tmp_path / "run", *KD, of(mine))
    weights = mine.weights()
    mine.write_weights("model", {k: v + 0.01 if k.endswith(".weight") else v for k, v in weights.items()})
    refused(tmp_path, "is not what its result.json is about", of(mine))
    result = mine.result
    result["fingerprints"]["model"] = hash_tensors(mine.weights())
    mine.write_result(result)
    told(tmp_path / "new", *KD, of(mine))
    with pytest.raises(Refused, match="is no longer the run that"):
        run.reference("teacher0")
    mine.mark("stopped")
    refused(tmp_path, r"not finished \(stopped\); finish it: sftc train resume=", of(mine))


def test_other_rows_and_other_kinds(tmp_path, teacher):
    values = plain(tmp_path / "values", "data=diabetes", *LEARNS[:2])
    refused(tmp_path, "learned values; the data holds classes", of(values))
    refused(tmp_path, "learned classes; the data holds values", of(teacher), "data=diabetes")
    root = make(tmp_path / "digits", classes=tuple("0123456789"), n=4, size=(8, 8))  # in colour
    colours = plain(tmp_path / "colours", "data=image_folder", f"data.root={root}", "epochs=1")
    told(tmp_path / "grey", *KD, of(colours), "strategy.allow_weak=true")  # grey is shown to it as three equal channels
    refused(tmp_path, "learned rows of form picture 1x8x8", of(teacher), "data=image_folder", f"data.root={root}")


def test_a_teacher_trained_on_the_validation_rows_is_remarked(tmp_path):
    seen = plain(tmp_path / "seen", "model=wide_mlp", *LEARNS, "data.limit=null", "data.split_seed=1")
    run = told(tmp_path / "run", *KD, of(seen))
    (remark,) = run.result["teachers"][0]["remarks"]
    assert "of the 64 validation rows: its scores flatter it" in remark
    clean = plain(tmp_path / "clean", "model=wide_mlp", *LEARNS, "data.limit=null")
    assert told(tmp_path / "other", *KD, of(clean)).result["teachers"][0]["remarks"] == []


TAP = ("strategy.terms.hint.weight=1", "strategy.terms.hint.student=[net.fc1]", "strategy.terms.hint.teacher=[net.fc1]")
WRONG = {
    "strategy.teacher_outputs=cached data.augment.mixup=0.2": "unmixed pictures",
    "strategy.teacher_outputs=cached data.augment.crop=2": "every epoch brings new pictures; set data.views",
    "strategy.cache_topk=3 data.augment.crop=2": "strategy.cache_topk=3: every epoch",
    "strategy.cache_topk=3 data=fake data.kind=labels": "which this data does not have",
    "strategy.terms.hint.student=[net.fcl1]": "tap 'net.fcl1' is no module.*net.fc1",
    "strategy.terms.hint.teacher=[net.fc11]": "tap 'net.fc11' is no module.*net.fc1",
    "strategy.terms.hint.of=1": "of=1, and there is 1 teacher",
    "strategy.terms.hint.student=[net.fc1,net.fc2]": "as many",
    "model@strategy.teacher=none": "has no teacher: name finished runs",
    "strategy.teacher.checkpoint=nowhere.pt": "there is no file nowhere.pt",
}


@pytest.mark.parametrize("say", WRONG)
def test_what_cannot_be_is_said_before_a_teacher_is_trained(tmp_path, say):
    taps = TAP if "hint" in say else ()
    refused(tmp_path, WRONG[say], *taps, *say.split())


def test_a_mistyped_tap_of_a_given_teacher(tmp_path, teacher):
    refused(
        tmp_path, r"tap 'net.fc3' is no module.*net\.fc", of(teacher), *TAP[:2], "strategy.terms.hint.teacher=[net.fc3]"
    )


def test_topk_answers_teach(tmp_path, mine):
    run = told(tmp_path / "run", *KD, of(mine), "strategy.cache_topk=3")
    kept = [read_tensors(file) for file in mine.path.glob("answers/*/*.safetensors")]
    assert [parts["values"].shape for parts in kept if "values" in parts] == [(96, 3)]
    assert run.rows()[0]["share/soft"] > 0
