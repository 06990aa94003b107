"""A run asked about another file of the kind it learned from."""

from __future__ import annotations

import pytest

from files import write_table
from problems import told
from sftc import cli
from sftc.cli import conf
from sftc.cli.elsewhere import named

DIRS = [conf.conf_dir()]


def test_only_the_file_need_be_said(tmp_path, capfd):
    root = write_table(tmp_path / "a.csv", 80)
    more = ("data.target=word", "data.drop=[value,hot,dry]")
    run = told(tmp_path / "run", "data=tabular", f"data.root={root}", *more).path
    lines = root.read_text().splitlines()
    other = tmp_path / "b.csv"  # columns the other way round, and another separator
    other.write_text("\n".join(";".join(reversed(line.split(","))) for line in lines) + "\n")
    said = []
    for file in (root, other):
        assert cli.main(["eval", f"run={run}", f"data.root={file}", "quiet=true"]) == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1]
    assert "accuracy" in said[0]
    other.write_text("\n".join(",".join(line.split(",")[1:]) for line in lines) + "\n")
    assert cli.main(["eval", f"run={run}", f"data.root={other}"]) == 2
    assert "no column size, which the model reads" in capfd.readouterr().err


@pytest.mark.parametrize("text", [None, "data: 3", "data: {name: [1]}", "data: {name: nothing}", "data: {x: 1}", "{"])
def test_a_run_that_does_not_say_changes_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    words = [f"run={tmp_path}", "data.root=x"]
    assert named(DIRS, words) == words


def test_what_is_said_stays(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {name: tabular}")
    for words in (["data.root=x"], [f"run={tmp_path}"], [f"run={tmp_path}", "data=wine", "data.limit=3"]):
        assert named(DIRS, words) == words
    assert named(DIRS, [f"run={tmp_path}", "data.root=x"])[0] == "data=tabular"
