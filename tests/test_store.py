"""The run folder: atomic, plain, and suspicious of what it reads."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from sftc.errors import Refused, Stopped
from sftc.store import Run, hash_tensors
from sftc.types import Predictions

CONFIG = {"model": {"name": "mlp"}, "lr": 1e-5, "note": "0x1F: yes", "none": None, "list": [1, 2.5, True]}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG)


def test_a_config_comes_back_as_it_was(run):
    assert Run.open(run.path).config == CONFIG
    assert run.status["state"] == "running"


@pytest.mark.parametrize("full", ["file", "folder", "run"])
def test_what_is_there_is_never_overwritten(full, tmp_path):
    path = tmp_path / "x"
    if full == "file":
        path.write_text("mine")
    elif full == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    else:
        Run.create(path, CONFIG)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(Refused, match="resume=" if full == "run" else "out="):
        Run.create(path, CONFIG)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_may_be_used(tmp_path):
    Run.create(tmp_path, CONFIG)


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(run, monkeypatch):
    run.write_json("data.json", {"x": 1})
    before = sorted(p.name for p in run.path.iterdir())

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(Stopped, match=r"cannot write .*disk full"):
        run.write_json("data.json", {"x": 2})
    monkeypatch.undo()
    assert run.read_json("data.json") == {"x": 1}
    assert sorted(p.name for p in run.path.iterdir()) == before


def test_weights_survive_tied_and_strided_tensors(run):
    w = torch.randn(4, 3)
    state = {"a": w, "tied": w, "t": w.T, "n": torch.tensor(3), "empty": torch.empty(0)}
    run.write_weights("model", state)
    back = run.weights()
    assert all(torch.equal(back[k], v) for k, v in state.items())
    assert hash_tensors(back) == hash_tensors(state)
    assert hash_tensors({**state, "a": w + 1}) != hash_tensors(state)


def test_damaged_or_missing_files_are_one_line(run):
    with pytest.raises(Refused, match="resume="):
        run.weights()
    run.write_weights("model", {"a": torch.ones(8)})
    path = run.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Refused, match="not a whole safetensors file"):
        run.weights()
    (run.path / "result.json").write_text("[1, 2")
    with pytest.raises(Refused, match="JSON"):
        _ = run.result


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format: 99\n", r"format 99, of another version.*reads format 1"),
        ("a: ${oc.env:HOME}\n", "interpolation"),
        ("- 1\n", "holds no keys"),
        ("a: [1\n", "YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "YAML"),
    ],
)
def test_a_config_that_is_not_plain_is_refused(text, says, run):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(Refused, match=says):
        _ = run.config


def test_opening_names_the_nearest(run):
    with pytest.raises(Refused, match="did you mean 'run'"):
        Run.open(run.path.parent / "runn")
    with pytest.raises(Refused, match="did you mean"):
        Run.open(run.path.parent)


def test_predictions_keep_their_marks(run):
    p = Predictions(torch.rand(3, 2), torch.tensor([0, 1, 0]), torch.tensor([4, 5, 9]))
    run.write_predictions("val", p, {"model": "abc", "data": "def"})
    back, meta = run.predictions("val")
    assert torch.equal(back.scores, p.scores)
    assert torch.equal(back.row, p.row)
    assert meta == {"model": "abc", "data": "def"}
    with pytest.raises(Refused, match="sftc eval run="):
        run.predictions("test")


def test_metrics_forget_what_came_after_the_checkpoint_and_lines_torn_by_a_kill(run):
    for epoch in (0, 1, 2):
        run.log({"epoch": epoch, "loss": math.nan if epoch == 1 else 0.5})
    with (run.path / "metrics.jsonl").open("a") as f:
        f.write('{"epoch": 3, "lo')
    assert [r["epoch"] for r in run.rows()] == [0, 1, 2]
    run.forget_from(2)
    assert [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()] == [
        {"epoch": 0, "loss": 0.5},
        {"epoch": 1, "loss": None},
    ]


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".environment.json.1.abcdef.tmp").write_text("{")
    run = Run.create(tmp_path / "r", {"model": {"name": "x"}})
    assert {p.name for p in run.path.iterdir()} == {"config.yaml", "status.json"}
