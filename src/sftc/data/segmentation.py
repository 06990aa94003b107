"""Pictures with a mask each: folders of both with equal stems, or list files that name the pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.data import coding
from sftc.data.coding import Coding
from sftc.data.folder import EXTENSIONS, SPLITS, content
from sftc.data.masks import UNKNOWN
from sftc.data.pictures import Unreadable, codes, extent, quiet, resized, shown, stretched
from sftc.data.rows import Table, digest
from sftc.data.skips import REMEDY, Lost
from sftc.data.split import Raw
from sftc.errors import Refused, nearest

_HEADERS = 500  # pictures whose size is looked up to choose data.size
IGNORED = [UNKNOWN]
_USUAL = 256  # the shorter side where sizes differ
_GREY = 128
Pair = tuple[str, str | None]  # picture and mask, below the root


class MaskTable:
    """Pictures on disk, decoded when read to uint8 RGB of one size, with their masks as a fourth channel.

    A target is 0 where a row has a mask, else -1; what the mask says is read with the picture.
    """

    masked = True
    about = {"pixels": True}  # noqa: RUF012  (of every such table, and never changed)

    def __init__(self, root: Path, pairs: Sequence[Pair], size: tuple[int, int], coding: Coding) -> None:
        self.root, self.coding = str(root), coding
        self.shape = (3, *size)
        self.target = torch.tensor([-1 if mask is None else 0 for _, mask in pairs])
        self.nbytes = len(pairs) * 4 * size[0] * size[1]
        # Arrays instead of a million strings: workers forked from us would copy every string they touch.
        self.pictures = np.array([os.fsencode(name) for name, _ in pairs])
        self.labels = np.array([os.fsencode(mask or "") for _, mask in pairs])
        self._fingerprint: str | None = None

    def path(self, row: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.pictures[row])))

    def mask_path(self, row: int) -> str | None:
        name = os.fsdecode(bytes(self.labels[row]))
        return os.path.join(self.root, name) if name else None

    def describe(self, row: int) -> str:
        return shown(self.path(row))

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        """uint8 [k, 4, H, W]: the picture, and its mask with 255 for what is unknown."""
        with quiet():
            both = [self._row(row, lost) for row in rows.tolist()]
        return torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2).contiguous()

    def masks(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        """uint8 [k, H, W]: the masks alone, at their own sizes made one."""
        with quiet():
            found = [self._guarded(row, lost, lambda row=row: self._mask(row, None)) for row in rows.tolist()]
        return torch.from_numpy(np.stack([self._nothing()[..., 3] if f is None else f for f in found]))

    def _row(self, row: int, lost: Lost | None) -> np.ndarray:
        def read() -> np.ndarray:
            picture, (width, height) = stretched(self.path(row), self.shape[1:])
            return np.dstack([picture, self._mask(row, (width, height))])

        found = self._guarded(row, lost, read)
        return self._nothing() if found is None else found

    def _nothing(self) -> np.ndarray:
        height, width = self.shape[1:]
        return np.dstack([np.full((height, width, 3), _GREY, np.uint8), np.full((height, width), UNKNOWN, np.uint8)])

    def _guarded(self, row: int, lost: Lost | None, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        try:
            return read()
        except Unreadable as why:
            path = shown(self.path(row))
            if lost is None:
                raise Refused(f"{path} cannot be used: {why}; {REMEDY}") from None
            lost[row] = path, str(why)
            return None

    def _mask(self, row: int, picture: tuple[int, int] | None) -> np.ndarray:
        """[H, W] at the table's size. Raises Unreadable, also if the mask is not as large as its picture."""
        path, (height, width) = self.mask_path(row), self.shape[1:]
        if path is None:
            return np.full((height, width), UNKNOWN, np.uint8)
        name = shown(os.path.relpath(path, self.root))
        try:
            raw = codes(path, self.coding.coloured)
            if picture is not None and raw.shape[1::-1] != picture:
                tall, wide = raw.shape[:2]
                raise Unreadable(f"it is {wide} x {tall}, the picture {picture[0]} x {picture[1]}")
            classes = self.coding(raw)
        except Unreadable as why:
            raise Unreadable(f"its mask {name}: {why}") from None
        return resized(classes, (height, width))

    def only(self, numbers: Sequence[int]) -> MaskTable:
        """With these classes alone, numbered in this order."""
        self.coding = self.coding.only(numbers)
        return self

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            named = [self.mask_path(i) for i in range(len(self.labels))]
            hashed = content([self.path(i) for i in range(len(named))] + [m for m in named if m is not None])
            names = b"\0".join([*self.pictures.tolist(), *self.labels.tolist()])
            self._fingerprint = digest(hashed, names, self.coding.identity(), self.shape)
        return self._fingerprint


def locate(root: str | None) -> Path:
    """The folder. Raises Refused: none was named, there is no such folder, or nothing in it is known."""
    if root is None:
        raise Refused("data.root is not set: a folder with images/ and masks/, or with list files (train.txt)")
    path = Path(root).expanduser()
    if not path.is_dir():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise Refused(f"data.root={path} is not a folder{near}")
    if not (path / "train.txt").is_file() and not _folders(path, "train") and not _both(path):
        looked = "train.txt, train/images/ and train/masks/, images/train/ and masks/train/, images/ and masks/"
        raise Refused(f"data.root={path} holds no pictures with masks (looked for {looked})")
    return path


def segmentation_folder(
    *,
    root: str | None = None,
    size: int | None = None,
    model_size: int | None = None,
    on_error: str = "fail",
    ignore: Sequence[Any] = IGNORED,
    palette: str | None = None,
    classes_file: str | None = None,
    names: Sequence[str] | None = None,
) -> Raw:
    """Pictures and masks, paired by stem or by list.

    Args:
        size: the shorter side of what batches hold, the longer as the first picture's. None: the pictures' own size if
            all looked at have one, else `model_size` or 256. Pictures of another shape are stretched, with their masks.
        ignore: what in masks is no class: numbers, or names.
        palette: file of lines "R G B name", for masks in colours.
        classes_file, names: what the numbers in masks are called, from 0 on; neither: the numbers that are found.
    """
    home = locate(root).absolute()
    notes: list[str] = []
    alone = notes if on_error == "skip" else None
    pairs = {split: found for split in SPLITS if (found := _pairs(home, split, alone))}
    if "train" not in pairs:
        raise Refused(f"data.root={home}: the train split has no pictures with masks")
    if on_error == "fail":
        for split, some in pairs.items():
            _all_there(home, split, some)
    known = coding.read(home, ignore, palette, classes_file, names)
    if known is None:
        known, why = coding.discovered(_masks(home, pairs["train"]), ignore, skip=on_error == "skip")
        notes.append(why)
    shape, why = choose_shape([str(home / name) for name, _ in pairs["train"]], size or None, model_size, on_error)
    notes.append(why)

    def table(split: str) -> Callable[[], Table]:
        return lambda: MaskTable(home, pairs[split], shape, known)

    return Raw("pixels", known.names, {split: table(split) for split in pairs}, notes)


def only(load: Callable[[], Any], numbers: Sequence[int]) -> Callable[[], Table]:
    """A table with some of its classes alone."""
    return lambda: load().only(numbers)


def _masks(home: Path, pairs: Sequence[Pair]) -> list[str]:
    return [str(home / mask) for _, mask in pairs if mask is not None]


def _pairs(home: Path, split: str, notes: list[str] | None) -> list[Pair]:
    """The pairs of a split; none if it is not there.

    Args:
        notes: take files without a partner, which are left out and named here; None: they are refused.

    Raises:
        Refused: a line or a file without its partner.
    """
    for name in SPLITS[split]:
        if (file := home / f"{name}.txt").is_file():
            return _listed(file)
    if (home / "train.txt").is_file():
        return []
    found = next((f for name in SPLITS[split] if (f := _folders(home, name))), None)
    if found is None and split == "train":
        found = _both(home)
    return [] if found is None else _matched(home, *found, notes)


def _folders(home: Path, name: str) -> tuple[Path, Path] | None:
    return _both(home / name) or next(
        ((a, b) for a, b in [(home / "images" / name, home / "masks" / name)] if a.is_dir() and b.is_dir()), None
    )


def _both(folder: Path) -> tuple[Path, Path] | None:
    pair = folder / "images", folder / "masks"
    return pair if all(p.is_dir() for p in pair) else None


def _listed(file: Path) -> list[Pair]:
    """Lines "picture mask", divided by a tab if there is one; a picture alone has no mask."""
    pairs: list[Pair] = []
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{shown(str(file))} cannot be read as a list of pictures and masks: {error}") from None
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
        parts = [part for part in parts if part]
        if len(parts) > 2:
            raise Refused(f"{file} line {number} names {len(parts)} files, not a picture and its mask: {shown(line)}")
        if parts:
            pairs.append((parts[0], parts[1] if len(parts) == 2 else None))
    doubled = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    if doubled:
        raise Refused(f"{file} names {shown(doubled[0])} twice")
    return pairs


def _matched(home: Path, images: Path, masks: Path, notes: list[str] | None) -> list[Pair]:
    pictures, labels = _stems(images), _stems(masks)
    for one, other, what in ((pictures, labels, "mask"), (labels, pictures, "picture")):
        if alone := sorted(one.keys() - other.keys()):
            here, there = one[alone[0]], (masks if what == "mask" else images)
            more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
            said = f"{shown(str(here))} has no {what} {shown(str(there / alone[0]))}.*{more}"
            if notes is None:
                raise Refused(
                    f"{said}; list files (train.txt) may name pictures without a mask, and data.on_error=skip leaves "
                    "such files out"
                )
            notes.append(f"{said}: left out")
    both = sorted(pictures.keys() & labels.keys())
    return [(os.path.relpath(pictures[s], home), os.path.relpath(labels[s], home)) for s in both]


def _stems(folder: Path) -> dict[str, Path]:
    """Path below `folder` without its ending -> the file. Raises Refused: two files of one stem."""
    out: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            stem = str(path.relative_to(folder).with_suffix(""))
            if stem in out:
                raise Refused(f"{shown(str(out[stem]))} and {shown(path.name)} have one stem: which is meant?")
            out[stem] = path
    return out


def _all_there(home: Path, split: str, pairs: Sequence[Pair]) -> None:
    for name in (name for pair in pairs for name in pair if name is not None):
        if not (home / name).is_file():
            raise Refused(f"{shown(str(home / name))}, which the list of {split} names, does not exist")


def choose_shape(
    paths: list[str], size: int | None, model_size: int | None, on_error: str
) -> tuple[tuple[int, int], str]:
    """(height, width) of what batches hold, and the reason. Raises Refused: a picture cannot be read."""
    looked = paths[:: max(1, -(-len(paths) // _HEADERS))]
    sizes: list[tuple[int, int]] = []
    with quiet():
        for path in looked:
            try:
                sizes.append(extent(path))
            except Unreadable as why:
                if on_error != "skip":
                    raise Refused(f"{shown(path)} cannot be read as a picture: {why}; {REMEDY}") from None
    if not sizes:
        raise Refused(f"none of {len(looked)} pictures looked at can be read; the first is {shown(looked[0])}")
    width, height = sizes[0]
    alike = len(set(sizes)) == 1
    if size is None and alike:
        return (height, width), f"size {width} x {height}: that of the {len(sizes)} pictures looked at"
    side = size or model_size or _USUAL
    shape = round(height * side / min(width, height)), round(width * side / min(width, height))
    why = "as asked" if size else "the largest model input" if model_size else "the usual"
    stretch = "" if alike else "; pictures of other shapes are stretched"
    return shape, f"size {shape[1]} x {shape[0]}: shorter side {side}, {why}{stretch}; scores are of masks at this size"
