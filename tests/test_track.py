"""Displays and trackers, with the real tools."""

from __future__ import annotations

import csv
import io

import pytest
import torch

from problems import lab
from sftc import track
from sftc.errors import Refused
from sftc.strategies.plain import Plain


def run(path, watch):
    home = lab(path)
    home.watch = watch
    Plain().run(home)
    return home.run


def test_tensorboard_reads_what_was_written(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = run(tmp_path / "a", track.make("tensorboard", quiet=True))
    events = reader.EventAccumulator(str(done.path / "tensorboard")).Reload()
    scalars = events.Scalars("val/accuracy")
    assert [s.step for s in scalars] == [r["step"] for r in done.rows()]
    assert [s.value for s in scalars] == pytest.approx([r["val/accuracy"] for r in done.rows()])


def test_csv_holds_every_row(tmp_path):
    done = run(tmp_path / "a", track.make("csv", quiet=True))
    rows = list(csv.DictReader((done.path / "metrics.csv").open()))
    assert [float(r["train/loss"]) for r in rows] == pytest.approx([r["train/loss"] for r in done.rows()])


def test_plain_lines_name_loss_metric_and_best(tmp_path, capsys):
    run(tmp_path / "a", track.Lines())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "val accuracy" in lines[0]
    assert "*" in lines[0]
    assert "loss" in lines[1]


def test_bars_show_epoch_total_rate_loss_and_metric(tmp_path, monkeypatch):
    from rich.console import Console

    text = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=text, force_terminal=True, width=140, legacy_windows=False)
    )
    monkeypatch.setattr(track, "REFRESH", 0.0)
    run(tmp_path / "a", track.Bars())
    shown = text.getvalue()
    for word in ("epoch", "total", "steps/s", "loss", "accuracy", "6/6"):
        assert word in shown


def test_displays_change_no_number(tmp_path):
    a, b = run(tmp_path / "a", track.Lines()), run(tmp_path / "b", track.make("csv", quiet=True))
    assert all(torch.equal(v, b.weights()[k]) for k, v in a.weights().items())


def test_an_unknown_tracker_is_refused():
    with pytest.raises(Refused, match="did you mean 'tensorboard'"):
        track.make("tensorbord", quiet=True)
