"""Words with a tag each: CoNLL's columns, a blank line between sentences; or jsonl with two lists a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from sftc.data.split import Raw
from sftc.data.text import SEPARATOR, TextTable, decoded, locate_files, objects
from sftc.errors import Refused, nearest

FORMATS = (".conll", ".txt", ".bio", ".iob", ".tsv", ".jsonl")
UNKNOWN = ("", "_")  # tags of words that have none


class Sentence(NamedTuple):
    """Words and their tags, as a file has them."""

    place: str
    words: list[str]
    tags: list[str]


def locate(root: str | None) -> dict[str, Path]:
    return locate_files(root, FORMATS)


def conll(
    *,
    root: str | None = None,
    word: int = 0,
    tag: int = -1,
    words: str = "words",
    tags: str = "tags",
    encoding: str = "utf-8",
) -> Raw:
    """Sentences whose words have a tag each, such as names in the BIO scheme.

    Args:
        word, tag: numbers of the columns, from 0 on or, negative, from the last.
        words, tags: keys of the two lists, of jsonl.
    """
    files = locate(root)

    def read(split: str) -> list[Sentence]:
        file = files[split]
        lists = file.suffix == ".jsonl"
        found = list(_lists(file, words, tags, encoding) if lists else _columns(file, word, tag, encoding))
        if not found:
            raise Refused(f"{file} holds no sentence")
        return found

    train = read("train")
    names = sorted({t for s in train for t in s.tags if t not in UNKNOWN}, key=lambda t: (t != "O", t[2:], t))
    if len(names) < 2:
        raise Refused(f"{files['train']} has {len(names)} tags; data.tag={tag} is another column?")
    number = {name: i for i, name in enumerate(names)} | dict.fromkeys(UNKNOWN, -1)

    def table(sentences: list[Sentence]) -> TextTable:
        target = torch.full((len(sentences), max(len(s.words) for s in sentences)), -1)
        for i, s in enumerate(sentences):
            for t in s.tags:
                if t not in number:
                    raise Refused(f"{s.place}: train has no tag {t[:40]}{nearest(t, names)}")
            target[i, : len(s.tags)] = torch.tensor([number[t] for t in s.tags])
        texts = [chr(SEPARATOR).join(s.words) for s in sentences]
        return TextTable(texts, target, torch.tensor([len(s.words) for s in sentences]))

    def load(split: str) -> Callable[[], TextTable]:
        return lambda: table(train if split == "train" else read(split))

    return Raw("tags", names, {split: load(split) for split in files})


def _columns(file: Path, word: int, tag: int, encoding: str) -> Iterator[Sentence]:
    words: list[str] = []
    tags: list[str] = []
    first = width = 0
    for number, line in enumerate([*decoded(file, encoding).split("\n"), ""], 1):
        line = line.strip("\r\n ")
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if words:
                yield Sentence(f"{file} line {first}", words, tags)
            words, tags = [], []
            continue
        first = first if words else number
        width = width or len(cells)
        if len(cells) != width:
            raise Refused(
                f"{file} line {number} has {len(cells)} columns, those before it {width}: is its tag lacking?"
            )
        if not all(-width <= c < width for c in (word, tag)) or word % width == tag % width:
            raise Refused(f"{file} has {width} columns: data.word={word} and data.tag={tag} are not two of them")
        words.append(_sound(cells[word], f"{file} line {number}"))
        tags.append(cells[tag].strip())


def _lists(file: Path, words: str, tags: str, encoding: str) -> Iterator[Sentence]:
    for place, row in objects(file, encoding):
        for key in (words, tags):
            if key not in row:
                raise Refused(f"{place} has no column {key}{nearest(key, list(row))}")
            if not isinstance(row[key], list) or not all(isinstance(x, str) for x in row[key]):
                raise Refused(f"{place}: {key} is no list of words but {str(row[key])[:40]}")
        if len(row[words]) != len(row[tags]):
            raise Refused(f"{place} has {len(row[words])} {words} and {len(row[tags])} {tags}: each word needs its tag")
        if row[words]:
            yield Sentence(place, [_sound(w, place) for w in row[words]], row[tags])


def _sound(word: str, place: str) -> str:
    word = word.strip()
    if not word or chr(SEPARATOR) in word or "\0" in word:
        raise Refused(f"{place} has an empty word, or one with a control character: remove it")
    return word
