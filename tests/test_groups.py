"""Rows of one person: pictures and sounds by their names, lines of a csv by a column; and what fusion makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import clips
from problems import config, plain
from sftc import build, data
from sftc.errors import Refused
from sftc.store import Run
from sftc.strategies import panel

NAMED = r"(?P<group>p\d)_.*"
PEOPLE, EACH = 6, 10


def who(row: int) -> int:
    return row // 2 % PEOPLE


def pictures(root: Path) -> Path:
    for i in range(PEOPLE * EACH):
        file = root / ("dark", "light")[i % 2] / f"p{who(i)}_{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 60 + 3 * who(i) + 90 * (i % 2)).save(file)
    return root


def sounds(root: Path) -> Path:
    for i in range(PEOPLE * EACH):
        pitch = (300.0, 1500.0)[i % 2] + 5 * who(i)
        clips.write(root / ("low", "high")[i % 2] / f"p{who(i)}_{i:03}.wav", clips.tone(pitch, i, seconds=0.05))
    lines = [f"{f.relative_to(root)},{f.parent.name},{f.stem[:2]}" for f in sorted(root.rglob("*.wav"))]
    (root / "clips.csv").write_text("\n".join(["path,label,who", *lines]))
    return root


def texts(root: Path) -> Path:
    root.mkdir(parents=True)
    rows = [{"text": f"{('good', 'bad')[i % 2]} word{i}", "label": "+-"[i % 2], "who": f"p{who(i)}"} for i in range(60)]
    (root / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (root / "a.csv").write_text("\n".join(["text,label,who", *(",".join(row.values()) for row in rows)]))
    return root


CASES = {
    "image_folder": (pictures, "", NAMED),
    "audio_folder": (sounds, "", NAMED),
    "audio_csv": (sounds, "clips.csv", "who"),
    "text_csv": (texts, "a.csv", "who"),
    "text_csv of jsonl": (texts, "a.jsonl", "who"),
}


def built(case: str, root: Path, **keys) -> data.Data:
    make, file, groups = CASES[case]
    spec = {"name": case.split()[0], "root": str(make(root) / file), "groups": groups}
    return data.build(spec | {"val_share": 0.25, "test_share": 0.2} | keys)


def person(split: data.Split, row: int) -> str:
    table = split.table
    if hasattr(table, "path"):
        return Path(table.path(row)).name[:2]  # type: ignore[attr-defined]
    said = bytes(table.read(torch.tensor([row]))[0].tolist()).decode().strip("\0")
    return f"p{who(int(said.split('word')[1]))}"


@pytest.mark.parametrize("case", CASES)
def test_rows_of_one_person_stay_in_one_split(case, tmp_path):
    d = built(case, tmp_path / "a")
    people = [{person(split, row) for row in split.rows.tolist()} for split in d.splits.values()]
    assert all(people)
    assert set.union(*people) == {f"p{i}" for i in range(PEOPLE)}
    assert sum(map(len, people)) == PEOPLE
    assert sum(len(split.rows) for split in d.splits.values()) == PEOPLE * EACH
    assert any("groups of" in note and "(data.groups)" in note for note in d.notes)
    alone = built(case, tmp_path / "b", groups=None)
    assert sum(len({person(s, row) for row in s.rows.tolist()}) for s in alone.splits.values()) > PEOPLE


@pytest.mark.parametrize(
    ("case", "groups", "says"),
    [
        ("image_folder", r"(?P<group>p\d)_00.*", r"does not fit .*p\d_0\d\d.png; every row needs its group"),
        ("image_folder", r"p\d_.*", r"needs a group \(\?P<group>"),
        ("image_folder", r"(?P<group>p\d_.*", "is no regular expression"),
        ("audio_folder", r"(?P<group>p)\d_.*", "has 1 groups; train, val and test need one each"),
        ("audio_csv", "whom", r"data.groups=whom is no column of .*clips.csv; did you mean 'who'"),
        ("audio_csv", "label", "has 2 groups"),
        ("text_csv", "whom", "has no column whom; did you mean 'who'"),
        ("text_csv of jsonl", "whom", "row 0 says nothing; every row needs its group"),
    ],
)
def test_groups_that_are_none_are_one_line(case, groups, says, tmp_path):
    with pytest.raises(Refused, match=says) as error:
        built(case, tmp_path / "a", groups=groups)
    assert "\n" not in str(error.value)


def test_fusion_holds_out_whole_people(tmp_path, monkeypatch):
    root = f"data.root={pictures(tmp_path / 'a')}"
    more = ("data=image_folder", root, f"data.groups='{NAMED}'", "data.limit=null", "data.val_share=0.6", "epochs=1")
    runs = [plain(tmp_path / f"run{i}", *more, "data.test_share=0.2", f"seed={i}") for i in range(2)]
    rows, group = runs[0].rows_of("val"), runs[0].groups()
    assert rows is not None
    assert group is not None
    assert len(group.unique()) >= 2
    folds = []
    dealt = panel.held_together
    monkeypatch.setattr(panel, "held_together", lambda *a, **k: folds.append(dealt(*a, **k)) or folds[-1])
    for i in range(2):  # of fused runs too
        listed = ",".join(str(run.path) for run in runs)
        build.fuse(
            config(f"runs=[{listed}]", "fuse=weighted", "quiet=true", command="fuse"), tmp_path / f"f{i}", [], ""
        )
        assert all(len(folds[i][group == one].unique()) == 1 for one in group.unique())
        assert len(folds[i].unique()) == len(group.unique())
        runs = [Run(tmp_path / f"f{i}"), runs[0]]


def test_one_person_of_validation_is_judged_by_rows(tmp_path, capsys):
    root = f"data.root={pictures(tmp_path / 'a')}"
    more = ("data=image_folder", root, f"data.groups='{NAMED}'", "data.limit=null", "epochs=1", "strategy=ensemble")
    cfg = config(*more, "strategy.n=2", "fuse@strategy.fuse=weighted")
    build.train(cfg, tmp_path / "run", [], "sftc train")
    run = Run(tmp_path / "run")
    assert "validation is one group (data.groups)" in capsys.readouterr().out
    assert run.result["fused"]["rule"] == "weighted"
    run.write_rows({"val": torch.arange(3), "val_group": torch.arange(2)}, {})
    with pytest.raises(Refused, match="val_group holds no group for each row"):
        run.groups()
