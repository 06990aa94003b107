"""What a run of a table keeps of its columns, changed by somebody: one line, no memory, nothing wrong computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from files import write_table
from problems import told
from sftc import build
from sftc.errors import Refused


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("made")
    root = write_table(home / "a.csv", 80)
    more = ("data.target=word", "data.drop=[value,hot,dry]", "+data.columns.id=hash", "data.buckets=50")
    return told(home / "run", "data=tabular", f"data.root={root}", *more).path


def changed(node: dict[str, Any], at: int, **keys: Any) -> dict[str, Any]:
    node["columns"][at] |= keys
    return node


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda about: {}, "not fit|absent"),
        (lambda about: {"columns": None}, r"data\.json"),
        (lambda about: {"columns": about["columns"][:-1]}, r"data\.json.*6 columns for rows of 7"),
        (lambda about: changed(about, 1, values=["Bonn"] * 3), r"data\.json.*twice"),
        (lambda about: changed(about, 1, values=[1, 2, 3]), r"data\.json"),
        (lambda about: changed(about, 1, values=about["columns"][1]["values"] * 0 + ["x"]), "does not fit its config"),
        (lambda about: changed(about, 1, kind="numeric"), r"data\.json"),
        (lambda about: changed(about, 6, buckets=10**12), r"data\.json"),
        (lambda about: changed(about, 6, buckets=(1 << 24) - 2), "more weights|does not fit"),
        (lambda about: changed(about, 6, buckets=-1), r"data\.json"),
        (lambda about: changed(about, 4, part="century"), r"data\.json"),
        (lambda about: changed(about, 4, of=""), r"data\.json"),
        (lambda about: changed(about, 4, of=["day"]), r"data\.json"),
        (lambda about: changed(about, 4, of="gone"), "no column gone, which the model reads"),
        (lambda about: changed(about, 3, part="hour", of="day"), r"data\.json"),
        (lambda about: changed(about, 0, name="city"), r"data\.json"),
        (lambda about: changed(about, 0, name="gone"), "no column gone, which the model reads"),
        (lambda about: changed(about, 0, name="../../x"), "no column"),
        (lambda about: changed(about, 0, missing=False), "does not fit its config"),
        (lambda about: changed(about, 0, _target_="os.system"), r"data\.json"),
        (lambda about: about | {"target": [["word"]]}, r"data\.json"),
        (lambda about: [about], "about"),
    ],
)
def test_columns_of_a_stored_run_are_held_to_their_form(made, tmp_path, change, says):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    node = json.loads((run / "data.json").read_text())
    node["about"] = change(node["about"])
    (run / "data.json").write_text(json.dumps(node))
    with pytest.raises(Refused, match=says) as error:
        build.evaluate({"run": str(run), "split": "test", "quiet": True})
    assert "\n" not in str(error.value)


def test_as_it_was_it_opens(made):
    build.evaluate({"run": str(made), "split": "test", "quiet": True})
