"""Commands below the command line: what they write, what they refuse, and that the folder alone is enough."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open

from problems import SMALL, config
from sftc import build
from sftc.errors import Refused, Stopped
from sftc.store import Run


def train(out, *overrides):
    cfg = config(*SMALL, *overrides)
    build.check(cfg)
    build.train(cfg, out, list(overrides), "sftc train ...")
    return Run.open(out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return train(tmp_path_factory.mktemp("done") / "run", "model=simple_cnn", "data.classes=[1,3,5]")


def evaluated(run, capsys, **more):
    build.evaluate({**config(f"run={run.path}", command="eval"), **more})
    table = capsys.readouterr().out.split("\n\n")[1]
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}


@pytest.mark.parametrize("split", ["val", "test"])
def test_eval_reproduces_what_the_run_stored(done, split, capsys):
    shown = evaluated(done, capsys, split=split)
    assert shown.keys() == done.result[split].keys()
    for name, (now, stored) in shown.items():
        assert now == stored == f"{done.result[split][name]:.4f}"


@pytest.mark.parametrize(
    "overrides",
    [("data=diabetes",), ("data=fake", "data.kind=labels"), ("data=fake", "data.kind=values"), ("data=fake",)],
)
def test_every_kind_of_data_trains_and_reopens(overrides, tmp_path, capsys):
    run = train(tmp_path / "run", *overrides)
    for name, (now, stored) in evaluated(run, capsys).items():
        assert now == stored, name
    assert run.result["params"] == sum(p.numel() for p in run.weights().values())


def test_eval_on_another_data_set_needs_the_same_classes(done, tmp_path, capsys):
    other = config(*SMALL, "data.classes=[1,3,5]", "data.split_seed=3")["data"]
    shown = evaluated(done, capsys, data=other)
    assert all(len(v) == 1 for v in shown.values())  # nothing stored to compare with
    for wrong in (config("data.classes=[1,3,6]")["data"], config("data=diabetes")["data"]):
        with pytest.raises(Refused, match="has other classes"):
            build.evaluate({**config(f"run={done.path}", command="eval"), "data": wrong})


def test_the_config_is_resolved_and_builds_the_same_run_again(done, tmp_path):
    cfg = done.config
    assert "auto" not in cfg["device"].values()
    assert cfg["model"]["input_size"] == 8
    assert cfg["model"]["pretrained"] is False
    again = {**cfg, "out": None, "resume": None, "quiet": True}
    build.train(again, tmp_path / "again", [], "")
    assert all(torch.equal(v, done.weights()[k]) for k, v in Run(tmp_path / "again").weights().items())


def test_environment_and_card_say_what_made_the_run(done):
    about = json.loads((done.path / "environment.json").read_text())
    assert about["packages"]["torch"] == torch.__version__.split("+")[0] or about["packages"]["torch"]
    assert {"python", "platform", "cores", "git", "command", "device"} <= about.keys()
    card = (done.path / "README.md").read_text()
    assert f"{done.result['test']['accuracy']:.4f}" in card
    assert "sftc train" in card


def test_export_needs_nothing_else(done, tmp_path):
    from sftc import models

    build.export(config(f"run={done.path}", f"out={tmp_path / 'x'}", command="export"))
    with safe_open(tmp_path / "x" / "model.safetensors", "pt") as f:
        about, state = json.loads(f.metadata()["sftc"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    assert about == json.loads((tmp_path / "x" / "config.json").read_text())
    model = models.build(about["model"], out_dim=len(about["class_names"]), form=tuple(about["shape"]))
    model.load_state_dict(state)
    assert about["class_names"] == ["1", "3", "5"]
    with pytest.raises(Refused, match="never overwritten"):
        build.export(config(f"run={done.path}", f"out={tmp_path / 'x'}", command="export"))


def test_a_finished_run_is_shown_not_trained(done, capsys):
    before = (done.path / "model.safetensors").stat().st_mtime_ns
    value = build.train(config(f"resume={done.path}"), done.path, [], "")
    assert value == done.result["val"]["accuracy"]
    assert "finished already" in capsys.readouterr().out
    assert (done.path / "model.safetensors").stat().st_mtime_ns == before


def test_a_stopped_run_says_so_and_is_gone_on_with(done, tmp_path, monkeypatch):
    overrides = ("model=simple_cnn", "data.classes=[1,3,5]")
    clock = iter([0.0] + [1.0] * 3 + [1e9] * 100)
    monkeypatch.setattr("sftc.stop.time.monotonic", lambda: next(clock))
    with pytest.raises(Stopped, match="goes on from here") as stopped:
        train(tmp_path / "run", *overrides, "max_minutes=5")
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert stopped.value.code == 75
    assert run.status["state"] == "stopped"
    with pytest.raises(Refused, match="resume="):
        _ = run.result
    build.train(config(f"resume={run.path}", "quiet=true"), run.path, [], "")
    assert run.finished
    assert all(torch.equal(v, done.weights()[k]) for k, v in run.weights().items())


def test_changed_data_is_not_resumed_on(tmp_path, monkeypatch):
    train(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.mark("stopped")
    run.write_rows({"train": torch.arange(3)}, {"data": "another"})
    with pytest.raises(Refused, match="has changed"):
        build.train(config(f"resume={run.path}", "quiet=true"), run.path, [], "")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("loss=mse",), "does not fit"),
        (("loss=huber", "data=fake"), "does not fit"),
        (("data=diabetes", "loss.smoothing=0.1"), "smoothing"),
        (("monitor=accurcy",), "did you mean 'accuracy'"),
        (("model=simple_cnn", "data=diabetes"), "model=mlp"),
        (("data.classes=[1,77]",), "77"),
        (("finetune=first_n", "finetune.n=3"), r"finetune\.n=3 must lie in 1\.\.2"),
        (("data=diabetes", "model.log_softmax=true"), "is for classes"),
        (("loss=nll",), r"set model\.log_softmax=true, or use loss=cross_entropy"),
    ],
)
def test_contradictions_leave_nothing_behind(overrides, says, tmp_path):
    with pytest.raises(Refused, match=says):
        train(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_crash_is_told_in_the_status(tmp_path, monkeypatch):
    monkeypatch.setattr("sftc.lab.Lab.fit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    status = Run.open(tmp_path / "run").status
    assert status["state"] == "failed"
    assert "ZeroDivisionError" in status["error"]


def test_a_config_of_something_else_is_refused(tmp_path):
    run = Run.create(tmp_path / "x", {"data": {}, "hello": 1})
    with pytest.raises(Refused, match="lacks model, strategy"):
        build.evaluate(config(f"run={run.path}", command="eval"))


def test_weights_that_are_gone_are_not_to_be_finished(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(Refused, match=r"is finished, and its model\.safetensors is gone: bring it back, or train anew"):
        build.evaluate(config(f"run={tmp_path / 'old'}", command="eval"))


def test_a_key_that_came_later_is_what_its_absence_was(done, tmp_path, capsys):
    shutil.copytree(done.path, tmp_path / "old")
    file = tmp_path / "old" / "config.yaml"
    known = yaml.safe_load(file.read_text())
    for path in ("data.unlabeled", "data.views", "model.checkpoint"):  # null, if nobody says more
        group, key = path.split(".")
        assert known[group].pop(key) is None
    file.write_text(yaml.safe_dump(known))
    assert evaluated(Run.open(tmp_path / "old"), capsys) == evaluated(done, capsys)
    del known["data"]["val_share"]  # 0.1, if nobody says more: what was without it nobody knows
    file.write_text(yaml.safe_dump(known))
    with pytest.raises(Refused, match=r"it lacks data\.val_share; another version of sftc wrote it, or none"):
        build.evaluate(config(f"run={tmp_path / 'old'}", command="eval"))


def test_multiply_adds_of_lenet_are_the_known_ones():
    from sftc import models
    from sftc.build.parts import multiply_adds
    from sftc.types import Form

    node = config("model=simple_cnn")["model"]
    lenet = models.build(node, out_dim=10, form=(3, 32, 32))
    # conv 6@28x28 of 3x5x5, conv 16@10x10 of 6x5x5, dense 400-120-84-10
    assert multiply_adds(lenet, Form((3, 32, 32))) == 6 * 784 * 75 + 16 * 100 * 150 + 400 * 120 + 120 * 84 + 84 * 10


def test_eval_and_export_do_without_the_data_the_run_learned_from(tmp_path, capsys):
    from files import make

    for name in ("old", "new"):
        make(tmp_path / name)
    run = train(tmp_path / "run", "data=image_folder", f"data.root={tmp_path / 'old'}", "model=simple_cnn")
    (tmp_path / "old").rename(tmp_path / "gone")
    build.export(config(f"run={run.path}", f"out={tmp_path / 'x'}", command="export"))
    other = config("data=image_folder", f"data.root={tmp_path / 'new'}")["data"]
    assert evaluated(run, capsys, data=other)


def test_rows_that_changed_are_not_compared(done, capsys, monkeypatch):
    monkeypatch.setattr("sftc.data.rows.Split.fingerprint", lambda self: "another")
    shown = evaluated(done, capsys)
    assert all(len(v) == 1 for v in shown.values())


def test_quiet_eval_prints_the_numbers_alone(done, capsys):
    build.evaluate(config(f"run={done.path}", "quiet=true", command="eval"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {name: float(value) for name, value in lines} == pytest.approx(done.result["test"], rel=1e-5)


def test_batchnorm_on_single_rows_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(Refused, match="batch_size=2"):
        train(tmp_path / "run", "model.batch_norm=true", "batch_size=1")
    assert not (tmp_path / "run").exists()


def test_loss_and_monitor_are_refused_before_data_is_read(tmp_path):
    for wrong in ("loss=mse", "monitor=r2"):
        with pytest.raises(Refused):
            build.check(config(*SMALL, wrong))


def test_where_rows_live_is_among_the_notes(done):
    assert any("held in memory" in note for note in done.environment["notes"])


def test_a_resumed_run_needs_no_file_its_weights_came_from(done, tmp_path, monkeypatch):
    overrides = (
        "model=simple_cnn",
        "data.classes=[1,3,5]",
        f"model.checkpoint={tmp_path / 'start'}",
        "penalty.l2_sp=0.1",
    )
    for name in ("start", "start2"):
        train(tmp_path / name, *overrides[:2])
    whole = train(tmp_path / "whole", *overrides)
    clock = iter([0.0] + [1.0] * 3 + [1e9] * 100)
    monkeypatch.setattr("sftc.stop.time.monotonic", lambda: next(clock))
    with pytest.raises(Stopped):
        train(tmp_path / "run", *overrides, "max_minutes=5")
    monkeypatch.undo()
    (tmp_path / "start").rename(tmp_path / "gone")
    run = Run.open(tmp_path / "run")
    build.train(config(f"resume={run.path}", "quiet=true"), run.path, [], "")
    assert all(torch.equal(v, whole.weights()[k]) for k, v in run.weights().items())
