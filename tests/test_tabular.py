"""Tables in files: what columns are taken for, told by training rows alone, and every bad table in one line."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from sftc import columns, data
from sftc.errors import Refused

ROWS = 60


def write(path: Path, cells: dict[str, list], sep: str = ",", encoding: str = "utf-8") -> Path:
    def quoted(word) -> str:
        word = str(word)
        return '"' + word.replace('"', '""') + '"' if any(c in word for c in f'{sep}"\n') else word

    lines = [sep.join(map(quoted, row)) for row in zip(*cells.values(), strict=True)]
    text = "\n".join([sep.join(map(quoted, cells)), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode(encoding)) if path.suffix == ".gz" else text.encode(encoding))
    return path


def mixed(n: int = ROWS) -> dict[str, list]:
    return {
        "size": [f"{i / 3:.2f}" for i in range(n)],
        "city": [["Köln", 'a "b"', "x,y;z"][i % 3] for i in range(n)],
        "open": [["yes", "No"][i % 2] for i in range(n)],
        "day": [f"2024-02-{1 + i % 28:02}" for i in range(n)],
        "price": [f"{(7 * i) % 61}.5" for i in range(n)],
    }


def built(path: Path, **keys) -> data.Data:
    return data.build({"name": "tabular", "root": str(path), **keys})


def column(d: data.Data, name: str, split: str = "train") -> tuple[dict, torch.Tensor]:
    """What is kept of a column, and its cells of all rows."""
    kept = d.form.about["columns"]
    at = [c["name"] for c in kept].index(name)
    table = d.splits[split].table
    return kept[at], table.read(torch.arange(len(table.target)))[:, at]


@pytest.mark.parametrize(
    ("name", "sep", "encoding"),
    [
        ("a.csv", ",", "utf-8"),
        ("a.csv", ";", "utf-8-sig"),
        ("a.tsv", "\t", "utf-8"),
        ("a.txt", "|", "utf-16"),
        ("a.csv.gz", ";", "utf-8"),
    ],
)
def test_separator_quotes_and_encoding_are_seen(tmp_path, name, sep, encoding):
    d = built(write(tmp_path / name, mixed(), sep, encoding))
    assert [(c["name"], c["kind"]) for c in d.form.about["columns"]] == [
        ("size", "numeric"),
        ("city", "categorical"),
        ("open", "boolean"),
        ("day", "date"),
        ("day weekday", "categorical"),
    ]
    assert column(d, "city")[0]["values"] == ["Köln", 'a "b"', "x,y;z"]
    assert column(d, "city")[1][:4].tolist() == [1, 2, 3, 1]
    assert column(d, "open")[1][:3].tolist() == [1, 0, 1]
    assert column(d, "day")[1][:2].tolist() == [19754, 19755]  # days since 1970
    torch.testing.assert_close(column(d, "size")[1], torch.arange(ROWS) / 3, atol=0.006, rtol=0)
    assert (d.kind, d.class_names) == ("values", ["price"])


def test_parquet_gives_what_csv_gives(tmp_path):
    pd = pytest.importorskip("pandas")
    cells = mixed()
    frame = pd.DataFrame(cells).astype({"size": float, "price": float})
    frame["day"], frame["open"] = pd.to_datetime(frame["day"]), frame["open"] == "yes"
    frame.to_parquet(tmp_path / "a.parquet")
    one, two = built(tmp_path / "a.parquet"), built(write(tmp_path / "a.csv", cells))
    assert one.form.about == two.form.about
    assert torch.equal(one.splits["train"].table.inputs, two.splits["train"].table.inputs)
    assert one.fingerprint == two.fingerprint


def test_everything_is_fitted_on_training_rows_alone(tmp_path):
    cells = mixed()
    d = built(write(tmp_path / "a.csv", cells))
    train = d.splits["train"].rows.tolist()
    others = sorted(set(range(ROWS)) - set(train))
    strange = {k: list(v) for k, v in cells.items()}
    for i in others:
        strange["size"][i], strange["city"][i], strange["price"][i] = "1e6", f"town{i}", "9999"
    strange["day"][others[0]] = strange["size"][others[1]] = ""
    other = built(write(tmp_path / "b.csv", strange))
    assert other.form.about == d.form.about
    for key in ("input_mean", "input_std", "target_mean", "target_std"):
        assert torch.equal(getattr(other, key), getattr(d, key))
    assert set(column(other, "city")[1][others].tolist()) == {0.0}
    assert column(other, "day")[1][others[0]].isnan()


def test_moments_leave_out_what_is_missing_and_codes(tmp_path):
    cells = mixed()
    for i in range(0, ROWS, 4):
        cells["size"][i] = ["NA", "", "?", "null"][i // 4 % 4]
    d = built(write(tmp_path / "a.csv", cells))
    assert column(d, "size")[0]["missing"]
    rows = d.splits["train"].rows
    sizes = column(d, "size")[1][rows]
    there = sizes[~sizes.isnan()].double()
    assert 0 < len(there) < len(rows)
    assert d.input_mean is not None
    assert d.input_std is not None
    assert d.input_mean[0].item() == pytest.approx(there.mean().item())
    assert d.input_std[0].item() == pytest.approx(there.std(unbiased=False).item())
    assert (d.input_mean[1].item(), d.input_std[1].item()) == (0, 1)  # of the city


def test_the_encoding_does_not_follow_limit_and_classes(tmp_path):
    path = write(tmp_path / "a.csv", {**mixed(), "kind": [f"k{i % 4}" for i in range(ROWS)]})
    whole, few = built(path), built(path, limit=8, classes=["k1", "k2"])
    assert few.form.about == whole.form.about
    assert few.class_names == ["k1", "k2"]
    assert len(few.splits["train"].rows) == 8


def test_kinds_can_be_said(tmp_path):
    cells = {**mixed(), "zip": [f"0{1000 + i % 7}" for i in range(ROWS)], "note": ["n"] * ROWS}
    said = {"zip": "categorical", "city": "hash", "note": "drop"}
    d = built(write(tmp_path / "a.csv", cells), target="price", columns=said, drop=["day"], buckets=5)
    assert [c["name"] for c in d.form.about["columns"]] == ["size", "city", "open", "zip"]
    assert column(d, "zip")[0]["values"] == [f"0{1000 + i}" for i in range(7)]
    assert column(d, "city")[0]["buckets"] == 5
    assert set(column(d, "city")[1].tolist()) <= set(range(1, 6))


def test_many_words_are_hashed_and_words_of_one_row_each_left_out(tmp_path):
    cells = {**mixed(), "id": [f"u{i // 2}" for i in range(ROWS)], "name": [f"n{i}" for i in range(ROWS)]}
    cells["number"] = [str(i + 17) for i in range(ROWS)]
    d = built(write(tmp_path / "a.csv", cells), target="price", categories=20)
    assert column(d, "id")[0]["kind"] == "hash"
    assert {"name", "number"}.isdisjoint(c["name"] for c in d.form.about["columns"])
    assert any("name" in n and "left out" in n for n in d.notes)
    assert any("number" in n and "left out" in n for n in d.notes)


def test_decimal_commas_and_days_before_months(tmp_path):
    cells = {"a": [f"{i},25" for i in range(ROWS)], "d": [f"{13 + i % 15}.02.2024" for i in range(ROWS)]}
    cells |= {
        "short": [f"2/{1 + i % 12}/24 7:30" for i in range(ROWS)],
        "version": [f"1.{i % 9}.24" for i in range(ROWS)],
    }
    d = built(write(tmp_path / "a.csv", {**cells, "y": [f"{i % 9},5" for i in range(ROWS)]}, ";"))
    assert column(d, "a")[1][:2].tolist() == [0.25, 1.25]
    assert column(d, "d")[1][0].item() == 19754 + 12
    assert column(d, "short")[1][:2].tolist() == [19754.3125, 19755.3125]  # months first, as Americans write
    assert column(d, "version")[0]["kind"] == "categorical"
    assert d.splits["train"].table.target[:2, 0].tolist() == [0.5, 1.5]


def test_parts_of_a_date_that_vary_in_training(tmp_path):
    every = ["month", "weekday", "hour"]
    when = [f"2024-{1 + i % 2:02}-{1 + i % 28:02} {i * 5 % 24:02}:59:59" for i in range(ROWS)]
    cells = {"when": when, "day": mixed()["day"], "y": [f"{i * 7 % 61}.5" for i in range(ROWS)]}
    whole = built(write(tmp_path / "a.csv", cells), date_parts=every)
    names = [c["name"] for c in whole.form.about["columns"]]
    assert names == ["when", *(f"when {p}" for p in every), "day", "day weekday"]  # all in February, at no hour
    assert [whole.form.about["columns"][i]["kind"] for i in range(3)] == ["date", "categorical", "categorical"]
    for part, number in (("month", "%m"), ("weekday", "%u"), ("hour", "%H")):
        kept, codes = column(whole, f"when {part}")
        expected = [str(int(datetime.fromisoformat(w).strftime(number))) for w in when]
        assert [kept["values"][int(c) - 1] for c in codes] == expected
    assert [c["name"] for c in built(tmp_path / "a.csv", date_parts=[]).form.about["columns"]] == ["when", "day"]
    # A missing date has none, nor has a month that training never saw.
    train, val = (whole.splits[s].rows.tolist() for s in ("train", "val"))
    cells["when"][train[0]], cells["when"][val[0]] = "", "1969-12-31"
    other = built(write(tmp_path / "b.csv", cells), date_parts=every)
    kept, codes = column(other, "when month")
    assert (kept["missing"], kept["values"]) == (True, ["1", "2"])
    assert codes[[train[0], val[0]]].tolist() == [0, 0]
    assert column(other, "when weekday")[1][val[0]] == 1 + column(other, "when weekday")[0]["values"].index("3")
    # Read as a run learned to, from the one column there is.
    second = data.build({"name": "tabular", "root": str(tmp_path / "a.csv")}, like=whole)
    assert torch.equal(second.splits["train"].table.inputs, whole.splits["train"].table.inputs)
    assert not any("never saw" in n for n in second.notes)
    with pytest.raises(Refused, match=r"data\.date_parts=year"):
        built(tmp_path / "a.csv", date_parts=["year"])


@pytest.mark.parametrize(
    ("cells", "keys", "kind", "names"),
    [
        ({"y": ["b", "a", ""]}, {}, "classes", ["a", "b"]),
        ({"y": [10, 9, 2]}, {}, "classes", ["2", "9", "10"]),
        ({"y": [10, 9, 2]}, {"kind": "values"}, "values", ["y"]),
        ({"y": ["true", "false", ""]}, {}, "classes", ["false", "true"]),
        ({"y": [0, 1, 1], "z": [1, 0, ""]}, {"target": ["y", "z"]}, "labels", ["y", "z"]),
        ({"y": [0, 1, 3], "z": [1.5, 0, ""]}, {"target": ["y", "z"]}, "values", ["y", "z"]),
    ],
)
def test_the_kind_of_the_target(tmp_path, cells, keys, kind, names):
    rows = {"x": [f"{i * i % 23}.5" for i in range(ROWS)], **{k: v * (ROWS // 3) for k, v in cells.items()}}
    d = built(write(tmp_path / "a.csv", rows), target=keys.pop("target", "y"), **keys)
    assert (d.kind, d.class_names) == (kind, names)
    target = d.splits["train"].table.target
    assert target.shape == ((ROWS,) if kind == "classes" else (ROWS, len(cells)))
    lacks = "" in cells["y"] or "" in cells.get("z", [])
    gone = target < 0 if kind == "classes" else target.isnan()
    assert int(gone.sum()) == (ROWS // 3 if lacks else 0)
    assert any("count as unlabelled" in n for n in d.notes) == lacks


def test_a_folder_with_splits_of_its_own(tmp_path):
    cells = {**mixed(), "kind": [f"k{i % 4}" for i in range(ROWS)]}
    write(tmp_path / "train.csv", cells)
    write(tmp_path / "test.csv", {k: [*v[:5], *v[:1]] for k, v in reversed(cells.items())})  # in another order
    d = built(tmp_path, target="kind")
    assert torch.equal(d.splits["test"].table.read(torch.arange(5)), d.splits["train"].table.read(torch.arange(5)))
    write(tmp_path / "test.csv", {**cells, "kind": ["new"] * ROWS})
    with pytest.raises(Refused, match=r"'new' in row 0, which is no class"):
        _ = built(tmp_path, target="kind").splits["test"].rows


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


BODY = [f"{i * 7 % 11},{i * 3 % 7},{i % 5}.5" for i in range(ROWS)]


@pytest.mark.parametrize(
    ("text", "keys", "says"),
    [
        ("", {}, "is empty"),
        (lines("a,a,y", *BODY), {}, "two columns named a"),
        (lines("a,b,y", *BODY, "1,2,3,4"), {}, "no table of 3 columns.*4"),
        (lines("a,b,y", *BODY, "1,2"), {}, "no table of 3 columns .row 60 has 2"),
        (lines("a,b,y", *(f"{i},{i % 3},7.0" for i in range(9))), {"kind": "values"}, "y is 7.0 wherever it is known"),
        (lines("a,b,y", *BODY), {"separator": ";"}, "one column, 'a,b,y'; set data.separator=,"),
        (lines("a,b,y", *BODY), {"separator": "!"}, "data.separator"),
        (lines("a,b,y", *BODY), {"target": "yy"}, "no column yy; did you mean 'y'"),
        (lines("a,b,y", *BODY), {"drop": ["c"]}, "data.drop: no column c"),
        (lines("a,b,y", *BODY), {"columns": {"a": "number"}}, "data.columns.a"),
        (lines("a,b,y", *BODY), {"columns": {"a": "date"}}, "data.columns.a=date: no training row holds one"),
        (lines("a,b,y", *BODY), {"drop": ["a", "b"]}, "no column is left"),
        (lines("a,b,y", *BODY, "1,2,inf"), {}, "row 60 says inf, which is not finite"),
        (lines("a,b,y", *BODY, "1,2,-inf"), {"kind": "values"}, "row 60 says -inf"),
        (lines("a,b,y", *BODY, "1,2,many"), {"kind": "values"}, "says 'many' in row 60: not a number"),
        (lines("a,b,y", *(f"{i},{i % 3},nan" for i in range(9))), {"kind": "values"}, "target y has no value in any"),
        (lines("a,b,y", *(f"{i},{i % 3},?" for i in range(9))), {}, "target y has no value in any row"),
        (lines("a,b,y", *BODY, "1,2,-1e39"), {"kind": "values"}, "row 60 says -inf, which is not finite"),
        (lines("a,b,y", *(f"{i},{i % 3},7" for i in range(9))), {"kind": "classes"}, "nothing to tell apart"),
        (lines("a,b,y", *(f"{i},{i % 3},w{i}" for i in range(90))), {}, "90 classes in 90 rows"),
        (lines("a,b,y", *("oops,1,2.5", "x,2,1.5"), *BODY), {}, "column a mixes numbers and words .row 0: 'oops'"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, text, keys, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(Refused, match=says) as error:
        built(tmp_path / "a.csv", **keys)
    assert "\n" not in str(error.value)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xff\xfa\n")
    (tmp_path / "b.csv").write_bytes(b"a\0b\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a.csv.gz").write_bytes(b"\x1f\x8b no")
    (tmp_path / "a.xlsx").write_bytes(b"no")
    for name, says in {
        "a.csv": "UTF-8",
        "b.csv": "no text",
        "a.parquet": "parquet",
        "a.csv.gz": "cannot be read",
        "a.xlsx": "should end in",
        "nowhere.csv": "neither",
        "": "no train.csv.*name one",
    }.items():
        with pytest.raises(Refused, match=says) as error:
            built(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match=r"data\.root=FILE"):
        data.check({"name": "tabular"})


def test_odd_cells_are_told_and_harmless(tmp_path):
    cells = {**mixed(), "same": [3] * ROWS, "empty": ["NA"] * ROWS}
    d = built(write(tmp_path / "a.csv", cells), target="price")
    assert any("same" in n and "tell nothing" in n for n in d.notes)
    assert any("empty" in n and "left out" in n for n in d.notes)
    batch = next(iter(d.source("train", 8, train=False, seed=0, device=torch.device("cpu")).epoch(0)))
    assert isinstance(batch.inputs, torch.Tensor)
    at = [c["name"] for c in d.form.about["columns"]].index("same")
    assert (batch.inputs[:, at] == 0).all()
    assert batch.inputs.isfinite().all()
    large = built(
        write(tmp_path / "c.csv", {**cells, "size": ["-1e39", "1e400", "Inf", *cells["size"][3:]]}), target="price"
    )
    assert column(large, "size")[1][:4].tolist()[3:] == [1.0]
    assert column(large, "size")[1][:3].isnan().all()  # no number in float32
    assert any("size: 3 cells are not numeric and count as missing (row 0: '-1e39')" in n for n in large.notes)
    # A word among numbers of validation rows, which nothing was fitted on.
    cells["size"][int(d.splits["val"].rows[0])] = "oops"
    other = built(write(tmp_path / "b.csv", cells), target="price")
    assert any("size" in n and "count as missing" in n and "oops" in n for n in other.notes)


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ({"copy": lambda i, y: 1000 - 3 * y}, "copy says the target itself"),
        ({"part": lambda i, y: i % 17, "rest": lambda i, y: y - i % 17}, "part, rest add up to the target"),
        ({"near": lambda i, y: y + (i % 13) / 7}, None),
    ],
)
def test_columns_that_say_the_target_are_warned_of(tmp_path, more, warned):
    y = [float(i * i % 59) + 0.5 for i in range(ROWS)]
    cells = {"x": [i * 5 % 31 for i in range(ROWS)]} | {k: [f(i, y[i]) for i in range(ROWS)] for k, f in more.items()}
    notes = [n for n in built(write(tmp_path / "a.csv", {**cells, "y": y})).notes if n.startswith("warning")]
    assert (len(notes) == 1 and warned in notes[0]) if warned else not notes


def test_a_first_line_without_names_is_warned_of(tmp_path):
    notes = built(
        write(tmp_path / "a.csv", {"7": [i * 7 % 11 for i in range(ROWS)], "0.25": ["0.5", "1.5"] * (ROWS // 2)})
    ).notes
    assert any("begins with a row, not with names of columns (0.25)" in n for n in notes)


def test_a_word_for_each_class_is_warned_of(tmp_path):
    cells = {"x": list(range(ROWS)), "word": ["no yes maybe".split()[i % 3] for i in range(ROWS)]}  # noqa: SIM905
    path = write(tmp_path / "a.csv", {**cells, "y": [i % 3 for i in range(ROWS)]})
    assert [n for n in built(path).notes if "column word says the target itself" in n]


def test_another_file_is_read_as_a_run_learned_to(tmp_path):
    cells = {**mixed(), "y": [i % 2 for i in range(ROWS)]}
    first = built(write(tmp_path / "a.csv", cells), target="y")
    other = {k: v[:20] for k, v in reversed(cells.items())}  # fewer rows, another order, a column more
    other["city"] = ["Atlantis", *other["city"][1:]]
    other["y"] = [0] * 20
    path = write(tmp_path / "b.csv", {"more": ["m"] * 20, **other})
    second = data.build({"name": "tabular", "root": str(path)}, like=first)  # which knows the target, too
    assert second.form.about == first.form.about
    assert second.class_names == ["0", "1"]
    mine, theirs = (d.splits["train"].table.read(torch.arange(20)) for d in (first, second))
    at = [c["name"] for c in first.form.about["columns"]].index("city")
    assert theirs[0, at] == 0
    theirs[0, at] = mine[0, at]
    assert torch.equal(mine, theirs)
    assert any("never saw, ignored: more" in n for n in second.notes)
    del other["city"]
    with pytest.raises(Refused, match="has no column city, which the model reads"):
        data.build({"name": "tabular", "root": str(write(path, other)), "target": "y"}, like=first)
    write(path, {**cells, "y": ["0", *["9"] * (ROWS - 1)]})
    with pytest.raises(Refused, match="'9' in row 1, which is no class"):
        data.build({"name": "tabular", "root": str(path), "target": "y"}, like=first)


def test_what_is_kept_is_plain(tmp_path):
    d = built(write(tmp_path / "a.csv", mixed()))
    about = json.loads(json.dumps(d.form.about))
    assert [c.plain() for c in columns.read(about, 5)] == about["columns"]


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "diabetes"])
def test_scikit_learns_tables(name):
    from sklearn import datasets

    held = getattr(datasets, f"load_{name}")()
    d = data.build({"name": name})
    table = d.splits["train"].table
    torch.testing.assert_close(table.read(torch.arange(len(held.data))), torch.from_numpy(held.data).float())
    assert torch.equal(table.target.flatten().double(), torch.from_numpy(held.target).double())
    assert [c["name"] for c in d.form.about["columns"]] == list(held.feature_names)
