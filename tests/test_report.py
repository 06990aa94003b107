"""Tables and the card: what is shown is what is stored."""

from __future__ import annotations

from problems import plain
from sftc import report


def test_names_that_look_like_markup_are_shown_as_they_are(capsys):
    report.show("out/m[/foo]x", report.per_class({"[red]dog": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "rows": 3}}))
    out = capsys.readouterr().out
    assert "m[/foo]x" in out
    assert "[red]dog" in out


def test_scores_show_best_and_last_on_both_splits(tmp_path, capsys):
    run = plain(tmp_path / "run")
    report.show(report.scores(run.result))
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("accuracy"))
    result = run.result
    four = (result["val"], result["test"], result["last"]["val"], result["last"]["test"])
    assert row[1:] == [f"{m['accuracy']:.4f}" for m in four]
    assert f"best: epoch {result['best']['epoch'] + 1}" in lines[0]


def test_a_run_without_a_test_split_has_dashes(tmp_path, capsys):
    run = plain(tmp_path / "run", "data.test_share=0")
    assert "test" not in run.result
    report.show(report.scores(run.result))
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    assert row[2] == row[4] == "-"


def test_the_card_tells_numbers_choices_and_command(tmp_path):
    run = plain(tmp_path / "run")
    text = report.card(run, "sftc train model=mlp", ["device cpu: asked for"])
    assert "sftc train model=mlp" in text
    assert "device cpu: asked for" in text
    assert f"{run.result['test']['accuracy']:.4f}" in text
