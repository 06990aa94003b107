"""Sounds in files: a folder per class, names that say the class, or a csv of paths and labels."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.data import folder, names, sounds
from sftc.data.apart import Apart, grouped, named
from sftc.data.pictures import Unreadable, shown
from sftc.data.rows import Table, digest
from sftc.data.skips import REMEDY, Lost, Skips
from sftc.data.split import Raw
from sftc.errors import Refused, nearest

Files = dict[str, list[tuple[str, str]]]  # split -> (path below the root, label; "" for none)

_HEADERS = 500  # clips whose header is read to choose rate and length
_USUAL = 95  # percentile of the lengths that is taken where the longest is much longer
_MUCH = 1.25
_MOST = 30.0  # seconds that data.seconds=auto takes at most
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class SoundTable:
    """Clips on disk, read to int16 [1, T] at one rate: the middle of longer ones, silence around shorter ones.

    Attributes:
        room: further samples read on each side, for what training moves; `cut` takes them off again.
    """

    def __init__(
        self,
        root: Path,
        classes: list[str],
        files: list[tuple[str, str]],
        rate: int,
        length: int,
        apart: Apart | None = None,
    ) -> None:
        self.apart = apart
        self.root = str(root)
        self.classes = classes
        self.shape = (1, length)
        self.about = {"rate": rate}
        number = {name: i for i, name in enumerate(classes)} | {"": -1}
        self.target = torch.tensor([number[label] for _, label in files])
        # One array instead of a million strings: workers forked from us would copy every string they touch.
        self.files = np.array([os.fsencode(name) for name, _ in files])
        self._fingerprint: str | None = None
        self.make_room(0)

    def make_room(self, samples: int) -> None:
        self.room = samples
        self.nbytes = 2 * len(self.files) * (self.shape[1] + 2 * samples)

    def path(self, row: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.files[row])))

    def describe(self, row: int) -> str:
        return shown(self.path(row))

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        return torch.from_numpy(np.stack([self._clip(row, lost) for row in rows.tolist()])).unsqueeze(1)

    def cut(self, clips: Tensor) -> Tensor:
        """What is heard of clips [n, 1, T + 2 * room] where nothing is moved."""
        return clips[..., self.room : self.room + self.shape[1]]

    def _clip(self, row: int, lost: Lost | None) -> np.ndarray:
        path, length = self.path(row), self.shape[1] + 2 * self.room
        try:
            return sounds.samples(path, self.about["rate"], length)
        except Unreadable as why:
            if lost is None:
                raise _unreadable(path, why) from None
            lost[row] = shown(path), str(why)
            return np.zeros(length, np.int16)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            content = folder.content([self.path(i) for i in range(len(self.files))])
            names = b"\0".join(self.files.tolist())
            self._fingerprint = digest(content, names, self.classes, self.shape, self.about, self.target)
        return self._fingerprint


def _unreadable(path: str, why: Unreadable) -> Refused:
    return Refused(f"{shown(path)} cannot be read as a sound: {why}; {REMEDY}")


def locate(root: str | None) -> dict[str, Path]:
    """The folder of each split; only "train" for a single folder. Raises Refused: see folder.locate; no soundfile."""
    sounds.library()
    return folder.locate(root, "*.wav")


def locate_csv(root: str | None) -> dict[str, Path]:
    """The csv of each split; only "train" for a single one. Raises Refused: there is none; no soundfile."""
    sounds.library()
    if root is None:
        raise Refused("data.root is not set: a csv of paths and labels, or a folder with train.csv (val.csv, test.csv)")
    path = Path(root).expanduser()
    if path.is_file():
        return {"train": path}
    found = {split: path / f"{name}.csv" for name, split in _SPLITS.items() if (path / f"{name}.csv").is_file()}
    if "train" not in found:
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise Refused(f"data.root={path} is no csv and no folder with a train.csv{near}")
    return found


def audio_folder(
    *,
    root: str | None = None,
    rate: int | str = "auto",
    seconds: float | str = "auto",
    pattern: str | None = None,
    groups: str | None = None,
    on_error: str = "fail",
    like: Any = None,
) -> Raw:
    """One folder per class, or names that say the class; split by folders, by names or by seed.

    Args:
        rate: samples a second. "auto": the clips' own, the most common one where they differ.
        seconds: of each row. "auto": the longest, or the 95th percentile where that is much shorter.
        pattern: regular expression of a whole file name without its ending. Its group `label` is the class; where a
            group `test` or `val` takes part, the file is of that split.
        groups: see apart.named.
        like: facts of the run whose model will hear the rows: they come at its rate and length.
    """
    places = {split: path.absolute() for split, path in locate(root).items()}
    if pattern is not None:
        where = Path(str(root)).expanduser().absolute()
        files, notes = _named(where, pattern)
        apart = named(groups, [name for name, _ in files["train"]])
        return _raw(dict.fromkeys(files, where), files, rate, seconds, on_error, like, notes, apart)
    classes = folder.class_folders(places["train"], "*.wav")
    files: Files = {}
    for split, path in places.items():
        folder._same_classes(classes, folder.class_folders(path, "*.wav"), split)
        found = folder.list_files(path, classes, sounds.EXTENSIONS, "sounds")
        files[split] = [(name, classes[label]) for name, label in found]
    apart = named(groups, [name for name, _ in files["train"]])
    return _raw(places, files, rate, seconds, on_error, like, [], apart)


def audio_csv(
    *,
    root: str | None = None,
    rate: int | str = "auto",
    seconds: float | str = "auto",
    path: str = "path",
    label: str = "label",
    split: str | None = None,
    groups: str | None = None,
    on_error: str = "fail",
    like: Any = None,
) -> Raw:
    """A csv with a header, a file and its class in each line; paths are relative to the csv.

    Args:
        path, label: names of the columns. A row whose label is empty is unlabelled.
        groups: column whose rows of one value stay together.
        split: column that says train, val or test; None: by files train.csv, val.csv and test.csv, or by seed.
        rate, seconds, like: see audio_folder.
    """
    found = {name: file.absolute() for name, file in locate_csv(root).items()}
    files: Files = {}
    together: list[str | None] = []
    for name, file in found.items():
        for part, file_name, word, group in _lines(file, path, label, split, groups):
            files.setdefault(part or name, []).append((file_name, word))
            if (part or name) == "train":
                together.append(group or None)
    if "train" not in files:
        raise Refused(f"{found['train']} has no rows of the train split")
    home = next(iter(found.values())).parent
    apart = None if groups is None else grouped(groups, together)
    return _raw(dict.fromkeys(files, home), files, rate, seconds, on_error, like, [], apart)


def _lines(
    file: Path, path: str, label: str, split: str | None, group: str | None
) -> Iterator[tuple[str | None, str, str, str]]:
    """(split or None, path, label, group or "") of each line.

    Raises:
        Refused: there is no such column, or a line says too little.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            for key, column in (("path", path), ("label", label), ("split", split), ("groups", group)):
                if column is not None and column not in (rows.fieldnames or ()):
                    known = ", ".join(rows.fieldnames or ()) or "none"
                    near = nearest(column, rows.fieldnames or ())
                    raise Refused(f"data.{key}={column} is no column of {file}{near} (columns: {known})")
            for row in rows:
                part = None if split is None else _SPLITS.get((row[split] or "").strip().lower(), "")
                if part == "":
                    raise Refused(f"{file} line {rows.line_num}: split '{row[split]}' is none of {', '.join(_SPLITS)}")
                if not (name := (row[path] or "").strip()):
                    raise Refused(f"{file} line {rows.line_num} names no file")
                together = "" if group is None else (row[group] or "").strip()
                yield part, name, (row[label] or "").strip(), together
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{file} is no csv in UTF-8 ({error})") from None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}") from None


def _named(root: Path, pattern: str) -> tuple[Files, list[str]]:
    """Every clip below `root` by what its name says."""
    files: Files = {}
    other = []
    clips = sorted(folder._pictures(str(root), "", [folder._place(p) for p in root.parents], sounds.EXTENSIONS))
    said = names.told("data.pattern", pattern, [Path(name).stem for name in clips], "label")
    for name, found in zip(clips, said, strict=True):
        groups = found or {}
        if not (label := groups.get("label")):
            other.append(name)
            continue
        split = next((s for s in ("test", "val") if groups.get(s) is not None), "train")
        files.setdefault(split, []).append((name, label))
    if "train" not in files:
        said = f"the first is {shown(other[0])}" if other else "there are no .wav .flac .ogg files"
        raise Refused(f"data.pattern={pattern} finds no training clip below {root}; {said}")
    notes = [f"{len(other):,} clips that data.pattern does not fit are left out, as {shown(other[0])}"] if other else []
    return files, notes


def _raw(
    roots: dict[str, Path],
    files: Files,
    rate: int | str,
    seconds: float | str,
    on_error: str,
    like: Any,
    notes: list[str],
    apart: Apart | None,
) -> Raw:
    classes = sorted({label for _, label in files["train"] if label})
    for split, some in files.items():
        if extra := sorted({label for _, label in some if label} - set(classes)):
            raise Refused(f"the {split} split has classes that train lacks: {', '.join(extra[:5])}")
    if len(classes) < 2:
        raise Refused(f"there is nothing to tell apart: the classes are {', '.join(classes) or 'none'}")
    if like is not None:
        heard, length = like.form.about["rate"], like.shape[1]
        notes.append(f"rate {heard}, seconds {length / heard:g}: those of the run")
    else:
        looked = [os.path.join(roots["train"], name) for name, _ in files["train"]]
        heard, length, said = choose(looked, rate, seconds, skip=on_error == "skip")
        notes += said

    def table(split: str) -> Callable[[], Table]:
        kept = apart if split == "train" else None
        return lambda: SoundTable(roots[split], classes, files[split], heard, length, kept)

    return Raw("classes", classes, {split: table(split) for split in files}, notes)


def choose(paths: list[str], rate: int | str, seconds: float | str, skip: bool = False) -> tuple[int, int, list[str]]:
    """Samples a second, samples of a row, and what to say about it.

    Args:
        skip: pass over clips that cannot be read, if they are not more than half of those looked at.

    Raises:
        Refused: one cannot be read, or too many; a rate or length that is none.
    """
    step = max(1, -(-len(paths) // _HEADERS))
    looked = paths[::step]
    found = _extents(looked, skip)
    how = f"{len(looked)} clips looked at" if step > 1 else f"all {len(looked)} clips"
    rates = Counter(e.rate for e in found)
    hertz = rates.most_common(1)[0][0] if rate == "auto" else rate
    if not isinstance(hertz, int) or not sounds.RATES[0] <= hertz <= sounds.RATES[1]:
        raise Refused(f"data.rate={rate} must be auto, or from {sounds.RATES[0]} to {sounds.RATES[1]} samples a second")
    others = sum(rates.values()) - rates[hertz]
    said = f", others ({', '.join(str(r) for r in sorted(rates) if r != hertz)}) are resampled" if others else ""
    notes = [f"rate {hertz}: that of {rates[hertz]} of {how}{said}"]
    if several := sum(e.channels > 1 for e in found):
        notes.append(f"{several} of {how} have more than one channel: mixed to one")
    lengths = np.array([e.frames / e.rate for e in found])
    long = float(lengths.max())
    if seconds == "auto":
        usual = float(np.percentile(lengths, _USUAL, method="lower"))  # of a clip, not between one and a far longer
        taken = min(long if long <= _MUCH * usual else usual, _MOST)
    else:
        taken = seconds
    if not isinstance(taken, int | float) or not 0 < taken <= 3600:
        raise Refused(f"data.seconds={seconds} must be auto, or a number of seconds up to 3600")
    length = max(1, round(taken * hertz))
    cut = int((lengths * hertz > length + 1).sum())
    ends = f"{cut} longer ones are cut, shorter ones padded" if cut else "shorter ones are padded"
    notes.append(f"seconds {length / hertz:.3g}: {how} last {lengths.min():.3g} to {long:.3g} s; {ends} with silence")
    return hertz, length, notes


def _extents(paths: list[str], skip: bool) -> list[sounds.Extent]:
    found, lost = [], Skips("train", len(paths))
    for i, path in enumerate(paths):
        try:
            found.append(sounds.extent(path))
        except Unreadable as why:
            if not skip:
                raise _unreadable(path, why) from None
            lost.add({i: (shown(path), str(why))})
    return found
