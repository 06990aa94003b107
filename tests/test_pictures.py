"""Pictures of a fused run: there, whole, and shown in its card, without a display."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from problems import config, plain, told
from sftc import pictures
from sftc.build import commands
from sftc.store import Run


@pytest.fixture
def team(tmp_path):
    """Two members and what is needed to fuse them: `team(rule)` gives the fused run."""
    members = [str(plain(tmp_path / f"run{i}", f"seed={i}").path) for i in range(2)]

    def fuse(rule: str = "all", count: int = 2) -> Run:
        out = tmp_path / f"fused-{rule}-{count}"
        node = config(f"runs=[{','.join(members[:count])}]", f"fuse={rule}", "quiet=true", command="fuse")
        commands.fuse(node, out, [], "sftc fuse")
        return Run.open(out)

    return fuse


def test_a_fused_run_has_its_pictures_and_its_card_shows_them(team, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    run = team()
    assert run.pictures == ["cost.png", "members.png"]
    for name in run.pictures:
        assert (run.path / name).read_bytes().startswith(b"\x89PNG\r\n")
        with Image.open(run.path / name) as image:
            image.load()
            assert 300 < image.width < 4000
            assert 300 < image.height < 4000
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "an empty page"
        assert f"({name})" in (run.path / "README.md").read_text()


def test_one_member_has_nobody_to_differ_from(team):
    pytest.importorskip("matplotlib")
    assert team("mean", 1).pictures == ["cost.png"]


def test_without_matplotlib_the_run_is_whole_and_a_line_says_what_is_missing(team, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = team("mean")
    assert run.finished
    assert run.pictures == []
    assert "sftc[pictures]" in str(pictures.draw(run))
    assert "![" not in (run.path / "README.md").read_text()
    assert capsys.readouterr().out == ""  # quiet


def test_the_card_of_a_fused_run_speaks_of_its_members_and_of_no_weights(team):
    text = (team("vote").path / "README.md").read_text()
    assert text.startswith("# vote on digits")
    assert "`run0`, `run1`" in text
    assert "model.safetensors" not in text


def test_the_pareto_line_holds_what_nothing_cheaper_beats():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (1.0, 0.6), (4.0, 0.9), (2.5, 0.8)]
    assert pictures.pareto(points, maximize=True) == [3, 5, 0]
    assert pictures.pareto(points, maximize=False) == [1, 2]


def test_a_run_that_is_fused_may_teach(team, tmp_path):
    fused = team("mean")
    run = told(tmp_path / "student", "strategy=kd", f"strategy.teachers=[{fused.path}]")
    assert [row["name"] for row in run.result["team"]] == ["teacher fused by mean", "student"]
    assert run.result["team"][0]["val"]["accuracy"] == pytest.approx(fused.result["val"]["accuracy"])
