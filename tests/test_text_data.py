"""Tables of texts, their readers, and one line for everything that is wrong with a file."""

from __future__ import annotations

import json

import pytest
import torch

from sftc import data
from sftc.errors import Refused
from texts import TAGS, sentences, tagged, write_conll, write_csv, write_folder

CPU = torch.device("cpu")


def build(name="text_csv", **more):
    return data.build({"name": name, **more})


def rows(d, split="train", size=16, train=False):
    return list(d.source(split, size, train=train, seed=0, device=CPU).epoch(0))


def texts(d, split="train"):
    return [bytes(x.numpy()).rstrip(b"\0").decode() for b in rows(d, split) for x in b.inputs]


def test_a_csv_is_read_row_for_row(tmp_path):
    d = build(root=str(write_csv(tmp_path, split=True)))
    assert d.class_names == ["money", "space", "sport"]
    assert texts(d) == [t for t, _ in sentences(120)]
    assert [d.class_names[i] for b in rows(d) for i in b.target.tolist()] == [c for _, c in sentences(120)]
    assert texts(d, "test") == [t for t, _ in sentences(40, 2)]
    assert d.form.kind == "text"
    assert d.form.corpus is not None
    assert list(d.form.corpus()) == texts(d)


def test_the_corpus_is_the_training_rows_alone(tmp_path):
    d = build(root=str(write_csv(tmp_path)), limit=30)
    assert d.form.corpus is not None
    assert len(list(d.form.corpus())) == 30
    assert not set(d.form.corpus()) & {*texts(d, "val"), *texts(d, "test")}


def test_bytes_that_are_no_ascii_and_rows_of_any_length(tmp_path):
    said = ["Zürich 東京 \x1f ok", "x" * 5000, "é"]
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": t, "label": i % 2}) for i, t in enumerate(said * 4))
    )
    d = build(root=str(tmp_path))
    assert set(texts(d)) <= set(said)
    (b, *_) = rows(d, size=3)
    assert b.inputs.dtype == torch.uint8
    assert b.inputs.shape[1] == max(len(t.encode()) for t in texts(d)[:3])


def test_columns_by_number_several_of_them_tabs_and_unlabelled_rows(tmp_path):
    lines = [f"{'ab'[i % 2] if i % 3 else ''}\thead {i}\tbody {i}" for i in range(30)]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    d = build(root=str(tmp_path), text=[1, 2], label=0, header=False, val_share=0.2)
    part = d.splits["train"].table
    assert next(iter(part.corpus(torch.tensor([7])))) == "head 7 body 7"
    assert (part.target == -1).sum() == 10
    assert build(root=str(tmp_path / "train.tsv"), text=[2], label=0, header=False).class_names == ["a", "b"]


def test_a_folder_per_class(tmp_path):
    d = build("text_folder", root=str(write_folder(tmp_path)))
    assert d.class_names == ["money", "space", "sport"]
    assert set(texts(d)) < {t for t, _ in sentences(60)}


@pytest.mark.parametrize("lists", [False, True])
def test_words_with_tags(tmp_path, lists):
    d = build("conll", root=str(write_conll(tmp_path, lists=lists)), val_share=0.2)
    assert sorted(d.class_names) == sorted(TAGS)
    assert d.class_names[0] == "O"
    assert d.kind == "tags"
    table, said = d.splits["train"].table, tagged(90)
    longest = max(len(words) for words, _ in said)
    for b in rows(d):
        assert b.target.shape == (len(b.index), longest)
        assert torch.equal(b.weight.sum(1).long(), table.extent[b.index])
        assert torch.equal(b.weight > 0, b.target >= 0)
        for row, line, target in zip(b.index.tolist(), b.inputs, b.target, strict=True):
            words = bytes(line.numpy()).rstrip(b"\0").decode().split("\x1f")
            assert len(words) == longest  # every row says how many places its batch has
            assert [w for w in words if w] == said[row][0]
            assert [d.class_names[t] for t in target.tolist() if t >= 0] == said[row][1]
    assert d.class_counts is not None
    assert int(d.class_counts.sum()) == sum(int((b.target >= 0).sum()) for b in rows(d))


def write(path, name, content):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())


HEAD = "text,label\n"
GOOD = "".join(f"some words {i},{'ab'[i % 2]}\n" for i in range(30))
BAD = {
    "wrong encoding": ("train.csv", HEAD.encode() + b"caf\xe9,a\n" + GOOD.encode(), {}, "line 2 is not utf-8.*latin-1"),
    "missing column": ("train.csv", HEAD + GOOD, {"label": "lable"}, "no column lable.*label"),
    "missing text": ("train.csv", "txet,label\n" + GOOD, {}, "no column text.*txet"),
    "no header": ("train.csv", GOOD, {"text": ["0"], "label": "1"}, "header=false"),
    "a number too many": ("train.csv", GOOD, {"text": ["5"], "label": "1", "header": False}, "columns 0 to 1, not 5"),
    "empty text": ("train.csv", HEAD + GOOD + ",a\n  ,b\n", {}, r"line 32 \(and 1 more\) has an empty text.*skip"),
    "label like text": ("train.csv", HEAD + GOOD, {"label": "text", "text": ["label"]}, "looks like text.*data.label"),
    "one class": ("train.csv", HEAD + "some words,a\n" * 9, {}, "holds 1 classes"),
    "torn row": ("train.csv", HEAD + GOOD + "a,b,c\n", {}, "line 32 has 3 columns"),
    "open quote": ("train.csv", HEAD + GOOD + '"never closed,a\n', {}, "is no csv"),
    "broken jsonl": ("train.jsonl", '{"text": "x", "label": 1}\n{"text": "y", ', {}, "line 2 is no JSON"),
    "jsonl no object": ("train.jsonl", "[1]\n", {}, "line 1 holds no object"),
    "jsonl column": ("train.jsonl", '{"txt": "x", "label": 1}\n', {}, "line 1 has no column text.*txt"),
    "jsonl number": ("train.jsonl", '{"text": 5, "label": 1}\n', {}, "line 1: text is no text"),
    "jsonl label": ("train.jsonl", '{"text": "x", "lable": 1}\n', {}, "no column label.*lable"),
    "unknown encoding": ("train.csv", HEAD + GOOD, {"encoding": "utf-9"}, "no encoding that Python knows"),
    "utf-16": ("train.csv", (HEAD + GOOD).encode("utf-16"), {}, "line 1 is not utf-8.*encoding=utf-16"),
    "empty file": ("train.csv", "", {}, "train.csv is empty"),
    "semicolons": ("train.csv", (HEAD + GOOD).replace(",", ";"), {}, "'text;label'; set data.delimiter=';'"),
    "nothing there": ("other.csv", HEAD + GOOD, {}, "none of train.csv"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_file_is_one_line(case, tmp_path):
    name, content, more, says = BAD[case]
    write(tmp_path, name, content)
    with pytest.raises(Refused, match=says) as e:
        build(root=str(tmp_path), **more)
    assert "\n" not in str(e.value)


def test_labels_unseen_in_train_are_refused_when_their_split_is_read(tmp_path):
    write(tmp_path, "train.csv", HEAD + GOOD)
    write(tmp_path, "test.csv", HEAD + "some words,bb\n")
    d = build(root=str(tmp_path))
    with pytest.raises(Refused, match=r"test.csv line 2: train has no row of class bb.*classes: a, b"):
        _ = d.splits["test"].rows


def test_rows_without_a_text_can_be_left_out(tmp_path):
    write(tmp_path, "train.csv", HEAD + GOOD + ",a\n")
    d = build(root=str(tmp_path), on_error="skip")
    assert "train: 1 of 31 rows have no text and are left out" in d.notes


BAD_TAGS = {
    "no tag": ("train.conll", "a O\nb\n", "line 2 has 1 columns"),
    "other lengths": ("train.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "line 1 has 2 words and 1 tags"),
    "no list": ("train.jsonl", '{"words": "a b", "tags": ["O"]}', "words is no list"),
    "no key": ("train.jsonl", '{"wrods": ["a"], "tags": ["O"]}', "no column words.*wrods"),
    "empty word": ("train.jsonl", '{"words": ["a", ""], "tags": ["O", "B-X"]}', "empty word"),
    "nothing": ("train.conll", "\n\n", "no sentence"),
    "one tag": ("train.conll", "a O\nb O\n", "1 tags"),
}


@pytest.mark.parametrize("case", BAD_TAGS, ids=str)
def test_bad_tags_are_one_line(case, tmp_path):
    name, content, says = BAD_TAGS[case]
    write(tmp_path, name, content)
    with pytest.raises(Refused, match=says) as e:
        build("conll", root=str(tmp_path))
    assert "\n" not in str(e.value)


def test_tags_unseen_in_train(tmp_path):
    write_conll(tmp_path)
    write(tmp_path, "test.conll", "a x B-PRE\n")
    with pytest.raises(Refused, match=r"test.conll line 1: train has no tag B-PRE.*B-PER"):
        _ = build("conll", root=str(tmp_path)).splits["test"].rows


def test_what_pictures_have_texts_do_not(tmp_path):
    root = str(write_csv(tmp_path))
    with pytest.raises(Refused, match="holds texts"):
        build(root=root, size=8)
    with pytest.raises(Refused, match="holds texts"):
        build(root=root, augment={"flip": 0.5})
