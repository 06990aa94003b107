"""A teacher made for a student that sees unlabelled rows too is that of one who sees the labelled rows alone."""

from __future__ import annotations

from pathlib import Path

from problems import lab
from sftc.strategies.teachers import made


def test_students_with_the_same_labels_share_a_teacher(tmp_path: Path):
    few = lab(tmp_path / "few", "data.limit=80")
    also = lab(tmp_path / "also", "data.limit=320", "data.unlabeled=0.75")
    how = {"epochs": 1, "lr": None, "seed": 0, "reuse": True}
    first, second = (made(home, home.run.config["model"], **how) for home in (few, also))
    assert first == second
    assert (also.data.splits["train"].target[few.data.splits["train"].rows] >= 0).all()
