"""Texts: a table of UTF-8 bytes, and the readers of csv, tsv and jsonl files and of a folder per class."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sftc.data.apart import Apart, grouped
from sftc.data.folder import _same_classes, class_folders, locate
from sftc.data.rows import digest
from sftc.data.skips import Lost
from sftc.data.split import Raw
from sftc.errors import Refused, nearest

SEPARATOR = 0x1F  # between the words of a row that has several answers: ASCII's "unit separator"
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
FORMATS = (".csv", ".tsv", ".jsonl")
MOST = 1000  # classes; a column of more different values is no label
EMPTY = "remove it, or set data.on_error=skip"


class TextTable:
    """Texts of any length, or texts of words that each have an answer, in memory: one blob of bytes.

    A row is read as its UTF-8 bytes, padded with 0. Words are separated by SEPARATOR, and as many more of it follow the
    last that every row of the table has as many places as its target.

    Args:
        texts: the rows; of words, already joined.
        target: [n] classes, or [n, T] tags of the words.
        words: [n] how many words each row has; None: rows have one answer each.
    """

    shape: tuple[int, ...] = ()
    host = True

    def __init__(self, texts: Sequence[str], target: Tensor, words: Tensor | None = None) -> None:
        rows = [text.replace("\0", " ").encode() for text in texts]
        self.target = target
        self.lengths = torch.tensor([len(row) for row in rows])
        self._blob = np.frombuffer(b"".join(rows), dtype=np.uint8)
        self._start = np.r_[0, np.cumsum(self.lengths.numpy())]
        self.nbytes = len(self._blob)
        self.apart: Apart | None = None
        self._fingerprint: str | None = None
        if words is not None:
            self.extent = words
            self.about = {"words": True}
        self._more = None if words is None else target.shape[1] - words.numpy()  # separators after the last word

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        """Row numbers [k] -> uint8 [k, L], as long as the longest of them."""
        at, lengths = self._start[rows.numpy()], self.lengths.numpy()[rows.numpy()]
        more = 0 if self._more is None else self._more[rows.numpy()]
        ends = lengths + more
        place = np.arange(max(1, ends.max(initial=1)))
        out = np.zeros((len(rows), len(place)), dtype=np.uint8)
        if self._more is not None:
            out[place < ends[:, None]] = SEPARATOR
        first = np.cumsum(lengths) - lengths  # where each row's bytes begin among those of all that were asked for
        out[place < lengths[:, None]] = self._blob[np.repeat(at - first, lengths) + np.arange(lengths.sum())]
        return torch.from_numpy(out)

    def corpus(self, rows: Tensor) -> Iterator[str]:
        for row in rows.tolist():
            yield self._blob[self._start[row] : self._start[row + 1]].tobytes().decode()

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = digest(torch.from_numpy(self._blob.copy()), self.lengths, self.target)
        return self._fingerprint


class Line(NamedTuple):
    """A row as a file has it."""

    place: str  # file and line, for messages
    text: str
    label: str | None
    group: str | None = None


def decoded(file: Path, encoding: str) -> str:
    """What a file says. Raises Refused: it is in another encoding, naming the line."""
    try:
        data = file.read_bytes()
    except OSError as e:
        raise Refused(f"{file} cannot be read: {e.strerror}") from None
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        other = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1 or another"
        raise Refused(
            f"{file} line {line} is not {encoding} (byte 0x{data[e.start]:02x}): set data.encoding={other}"
        ) from None
    except LookupError:
        raise Refused(f"data.encoding={encoding} is no encoding that Python knows; utf-8 is the usual one") from None


def locate_files(root: str | None, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """The file of each split; only "train" where root is a file. Raises Refused: there is none."""
    if root is None:
        raise Refused(f"data.root is not set: a {formats[0]} file, or a folder with train{formats[0]}, val, test")
    path = Path(root).expanduser()
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise Refused(f"data.root={path} is neither a file nor a folder{near}")
    found = {}
    for split, names in SPLITS.items():
        files = [path / f"{name}{end}" for name in names for end in formats if (path / f"{name}{end}").is_file()]
        if len(files) > 1:
            raise Refused(f"data.root={path} has both {files[0].name} and {files[1].name}: which is {split}?")
        if files:
            found[split] = files[0]
    if "train" not in found:
        looked = ", ".join(f"train{end}" for end in formats)
        raise Refused(f"data.root={path} has none of {looked}")
    return found


def text_csv(
    *,
    root: str | None = None,
    text: Sequence[Any] = ("text",),
    label: str | int = "label",
    groups: str | int | None = None,
    header: bool = True,
    delimiter: str = "auto",
    encoding: str = "utf-8",
    on_error: str = "fail",
) -> Raw:
    """A text in each line of a csv, tsv or jsonl file, with its class in a column; an empty one is not known.

    Args:
        text: columns that make the text, joined by a blank: names, or numbers from 0 on where there is no header.
        groups: column whose rows of one value stay together.
        on_error: "skip" leaves out rows without a text.
    """
    files = locate_files(root)
    if not text:
        raise Refused("data.text=[] names no column; give one or more, such as data.text=[title,body]")
    columns = [str(c) for c in text]
    notes: list[str] = []

    def lines(split: str) -> list[Line]:
        file = files[split]
        group = None if groups is None or split != "train" else str(groups)
        if file.suffix == ".jsonl":
            found = _jsonl(file, columns, str(label), encoding, group)
        else:
            between = {"auto": "\t" if file.suffix == ".tsv" else ","}.get(delimiter, delimiter)
            found = _csv(file, columns, str(label), header, between, encoding, group)
        return whole(list(found), split, on_error, notes)

    read = {split: lambda split=split: lines(split) for split in files}
    return _raw(read, str(label), notes, None if groups is None else str(groups))


def text_folder(*, root: str | None = None, encoding: str = "utf-8", on_error: str = "fail") -> Raw:
    """A folder per class with a text in each .txt file, split by folders or by seed.

    Args:
        on_error: "skip" leaves out empty files.
    """
    places = locate(root)
    classes = class_folders(places["train"])
    notes: list[str] = []

    def lines(split: str) -> list[Line]:
        _same_classes(classes, class_folders(places[split]), split)
        found = []
        for name in classes:
            folder = places[split] / name
            files = sorted(Path(d) / f for d, _, names in os.walk(folder) for f in names if f.endswith(".txt"))
            if not files:
                raise Refused(f"the class folder {folder} holds no texts (*.txt): remove it")
            found += [Line(str(file), decoded(file, encoding).strip(), name) for file in files]
        return whole(found, split, on_error, notes)

    return _raw({split: lambda split=split: lines(split) for split in places}, "the folders", notes)


def whole(lines: list[Line], split: str, on_error: str, notes: list[str]) -> list[Line]:
    """Those that have a text. Raises Refused: one has none, and data.on_error=fail."""
    empty = [line for line in lines if not line.text]
    if empty and on_error == "fail":
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise Refused(f"{empty[0].place}{more} has an empty text: {EMPTY}")
    if len(empty) == len(lines):
        raise Refused(f"the {split} split has no row with a text")
    if empty:
        notes.append(f"{split}: {len(empty)} of {len(lines)} rows have no text and are left out")
    return [line for line in lines if line.text] if empty else lines


def _raw(read: dict[str, Callable[[], list[Line]]], column: str, notes: list[str], groups: str | None = None) -> Raw:
    train = read["train"]()
    names = _classes([line.label for line in train if line.label], column)
    number = {name: i for i, name in enumerate(names)}

    def table(lines: Iterable[Line]) -> TextTable:
        lines = list(lines)
        for line in lines:
            if line.label and line.label not in number:
                raise Refused(
                    f"{line.place}: train has no row of class {line.label[:40]}{nearest(line.label, names)} "
                    f"(classes: {', '.join(names[:12])})"
                )
        return TextTable([x.text for x in lines], torch.tensor([number[x.label] if x.label else -1 for x in lines]))

    apart = None if groups is None else grouped(groups, [line.group for line in train])

    def load(split: str) -> Callable[[], TextTable]:
        if split != "train":
            return lambda: table(read[split]())

        def first() -> TextTable:
            made = table(train)
            made.apart = apart
            return made

        return first

    return Raw("classes", names, {split: load(split) for split in read}, notes)


def _classes(labels: list[str], column: str) -> list[str]:
    """The different labels in order, numbers by size. Raises Refused: they are no classes."""
    names = sorted(set(labels))
    if len(names) > MOST or (len(labels) > 20 and 2 * len(names) > len(labels)):
        raise Refused(
            f"data.label={column} looks like text: {len(names):,} different values in {len(labels):,} rows "
            f"(such as {names[0][:40]!r}); set data.label to the column of the classes"
        )
    if len(names) < 2:
        raise Refused(f"data.label={column} holds {len(names)} classes; two are needed to tell them apart")
    return sorted(names, key=int) if all(n.isdecimal() for n in names) else names


def _csv(
    file: Path, columns: list[str], label: str, header: bool, delimiter: str, encoding: str, group: str | None
) -> Iterator[Line]:
    csv.field_size_limit(1 << 27)
    rows = csv.reader(io.StringIO(decoded(file, encoding), newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        known = names if header else [str(i) for i in range(len(names))]
        at = [_column(file, known, c, header) for c in columns]
        to = _column(file, known, label, header)
        by = None if group is None else _column(file, known, group, header)
        for row in rows if header else _again(names, rows):
            place = f"{file} line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(known):
                raise Refused(f"{place} has {len(row)} columns, the first line {len(known)}: look at its quotes")
            text = " ".join(row[i].strip() for i in at).strip()
            yield Line(place, text, row[to].strip() or None, None if by is None else row[by].strip() or None)
    except csv.Error as e:
        raise Refused(f"{file} line {rows.line_num} is no csv ({e}); data.delimiter={delimiter!r}") from None


def _again(first: list[str], rows: Iterable[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rows


def _column(file: Path, known: list[str], wanted: str, header: bool) -> int:
    if wanted not in known:
        if not header:
            raise Refused(f"{file} has columns 0 to {len(known) - 1}, not {wanted} (data.header=false)")
        if not known:
            raise Refused(f"{file} is empty")
        way = "; has it no header? then set data.header=false" if wanted.isdecimal() else ""
        between = next((sign for sign in ";\t|," if len(known) == 1 and sign in known[0]), None)
        if between is not None:
            raise Refused(f"{file} has one column, {known[0][:80]!r}; set data.delimiter={between!r}")
        raise Refused(f"{file} has no column {wanted}{nearest(wanted, known)} (columns: {', '.join(known[:12])}){way}")
    return known.index(wanted)


def objects(file: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line of a jsonl file. Raises Refused: a line is broken, with its number."""
    for number, line in enumerate(decoded(file, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Refused(f"{file} line {number} is no JSON ({str(e)[:80]})") from None
        if not isinstance(found, dict):
            raise Refused(f"{file} line {number} holds no object with columns, such as {{'text': ..., 'label': ...}}")
        yield f"{file} line {number}", found


def _jsonl(file: Path, columns: list[str], label: str, encoding: str, group: str | None) -> Iterator[Line]:
    for place, row in objects(file, encoding):
        for column in columns:
            if column not in row:
                raise Refused(f"{place} has no column {column}{nearest(column, list(row))}")
            if not isinstance(row[column], str):
                raise Refused(f"{place}: {column} is no text but {str(row[column])[:40]}")
        text = " ".join(row[c].strip() for c in columns).strip()
        found = row.get(label)
        if found is not None and not isinstance(found, str | int):
            raise Refused(f"{place}: {label} is no class but {str(found)[:40]}")
        if label not in row and (near := nearest(label, list(row))):
            raise Refused(f"{place} has no column {label}{near}")
        together = None if group is None or row.get(group) is None else str(row[group]).strip() or None
        yield Line(place, text, None if found is None else str(found).strip() or None, together)
