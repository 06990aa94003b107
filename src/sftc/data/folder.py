"""Pictures in folders: one folder per class, under train/, val/ and test/ or directly under the root."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sftc.data.apart import Apart, named
from sftc.data.pictures import Unreadable, extent, pixels, quiet, shown, unblocked
from sftc.data.rows import Table, digest
from sftc.data.shelf import Shelf, place
from sftc.data.skips import REMEDY, Lost, Skips
from sftc.data.split import Raw
from sftc.errors import Refused, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_HEADERS = 500  # pictures whose size is looked up to choose data.size
_NATIVE = 64  # pictures up to this side are kept as they are
_LARGE = 224
_HASHED = 2 << 30  # a folder with more bytes is fingerprinted by names, sizes and a sample of its contents
_SAMPLE = 1000
_MEMOS = Shelf(functools.partial(place, "fingerprints"), most=64 << 20)
_GREY = 128  # a picture that is skipped: about zero once the model has normalised it


class FolderTable:
    """Pictures on disk, decoded when read to uint8 RGB of `size`.

    Row numbers follow the sorted class names, then the sorted paths.
    """

    def __init__(
        self, root: Path, classes: list[str], size: int, files: list[tuple[str, int]], apart: Apart | None = None
    ) -> None:
        self.apart = apart
        self.root = str(root)
        self.classes = classes
        self.shape = (3, size, size)
        self.target = torch.tensor([label for _, label in files])
        self.nbytes = len(files) * 3 * size * size
        # One array instead of a million strings: workers forked from us would copy every string they touch.
        self.files = np.array([os.fsencode(name) for name, _ in files])
        self._fingerprint: str | None = None

    def path(self, row: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.files[row])))

    def describe(self, row: int) -> str:
        return shown(self.path(row))

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor:
        with quiet():
            pictures = [self._picture(row, lost) for row in rows.tolist()]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def _picture(self, row: int, lost: Lost | None) -> np.ndarray:
        path, size = self.path(row), self.shape[-1]
        try:
            return pixels(path, size)
        except Unreadable as why:
            if lost is None:
                raise _unreadable(path, why) from None
            lost[row] = shown(path), str(why)
            return np.full((size, size, 3), _GREY, np.uint8)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            hashed = content([self.path(i) for i in range(len(self.files))])
            names = b"\0".join(self.files.tolist())
            self._fingerprint = digest(hashed, names, self.classes, self.shape, self.target)
        return self._fingerprint


def _unreadable(path: str, why: Unreadable) -> Refused:
    return Refused(f"{shown(path)} cannot be read as a picture: {why}; {REMEDY}")


def locate(root: str | None, like: str = "*.png") -> dict[str, Path]:
    """The folder of each split; only "train" for a single folder of class folders.

    Raises:
        Refused: no root, no such folder, or none that holds training pictures.
    """
    if root is None:
        raise Refused("data.root is not set: a folder with train/, val/ and test/, or with one folder per class")
    path = Path(root).expanduser()
    if not path.is_dir():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise Refused(
            f"data.root={path} is not a folder{near} (looked for train/<class>/{like} or <class>/{like} in it)"
        )
    found = {s: path / n for s, names in SPLITS.items() for n in names if (path / n).is_dir()}
    if not found:
        return {"train": path}
    if "train" not in found:
        raise Refused(f"data.root={path} has {', '.join(sorted(p.name for p in found.values()))} but no train folder")
    return found


def image_folder(
    *,
    root: str | None = None,
    groups: str | None = None,
    size: int | None = None,
    model_size: int | None = None,
    on_error: str = "fail",
) -> Raw:
    """One folder per class, split by folders or by seed.

    Args:
        groups: see apart.named.
        size: side of what batches hold. None: the pictures' own if all looked at are squares of one side up
            to 64, else `model_size`, the largest model input of the run, or 224; squares of one larger side
            are never blown up.
        on_error: "skip" passes over pictures that cannot be read when it looks for the size.
    """
    places = {split: folder.absolute() for split, folder in locate(root).items()}
    classes = class_folders(places["train"])
    for split, folder in places.items():
        _same_classes(classes, class_folders(folder), split)
    files = {split: list_files(folder, classes) for split, folder in places.items()}
    notes = []
    if size is None:
        looked = [os.path.join(places["train"], f) for f, _ in files["train"]]
        size, why = choose_size(looked, model_size, skip=on_error == "skip")
        notes.append(why)
    side = size
    apart = named(groups, [name for name, _ in files["train"]])

    def table(split: str) -> Callable[[], Table]:
        return lambda: FolderTable(places[split], classes, side, files[split], apart if split == "train" else None)

    return Raw("classes", classes, {s: table(s) for s in places}, notes)


def class_folders(folder: Path, like: str = "*.png") -> list[str]:
    names = sorted(e.name for e in _entries(folder) if _is_folder(e))
    if not names:
        raise Refused(f"{folder} holds no class folders (looked for {folder}/<class>/{like})")
    for name in names:
        if not name.isprintable():
            raise Refused(f"the class folder {folder}/{shown(name)} has a name that cannot be printed: rename it")
    return names


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden. Raises Refused: it cannot be looked into."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise Refused(f"the folder {shown(str(folder))} cannot be read: {error.strerror}") from None


def _same_classes(train: list[str], other: list[str], split: str) -> None:
    extra, lacking = sorted(set(other) - set(train)), sorted(set(train) - set(other))
    if extra or lacking:
        said = [f"{what} {', '.join(names[:5])}" for what, names in (("adds", extra), ("lacks", lacking)) if names]
        raise Refused(f"the {split} folder has other classes than train: it {' and '.join(said)}")


def list_files(
    folder: Path, classes: list[str], extensions: tuple[str, ...] = EXTENSIONS, what: str = "pictures"
) -> list[tuple[str, int]]:
    """Every picture, or what else is looked for, below the class folders: (path relative to `folder`, class number)."""
    files: list[tuple[str, int]] = []
    above = [_place(p) for p in (folder, *folder.resolve().parents)]
    for label, name in enumerate(classes):
        found = sorted(_pictures(os.path.join(folder, name), name, above, extensions))
        if not found:
            raise Refused(f"the class folder {folder / name} holds no {what} ({' '.join(extensions)}): remove it")
        files += [(f, label) for f in found]
    return files


def _pictures(
    folder: str, name: str, above: list[tuple[int, int]], extensions: tuple[str, ...] = EXTENSIONS
) -> Iterator[str]:
    """Paths below `folder`, which are told to lie below `name`. Links are followed, but not back to a folder above."""
    here = _place(folder)
    if here in above:
        return
    for entry in _entries(folder):
        inner = os.path.join(name, entry.name)
        if _is_folder(entry):
            yield from _pictures(entry.path, inner, [*above, here], extensions)
        elif entry.name.lower().endswith(extensions):
            yield inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _place(folder: str | Path) -> tuple[int, int]:
    """What a folder is, by whatever path it was reached."""
    try:
        stat = os.stat(folder)
    except OSError as error:
        raise Refused(f"the folder {shown(str(folder))} cannot be read: {error.strerror}") from None
    return stat.st_dev, stat.st_ino


def choose_size(paths: list[str], model_size: int | None, skip: bool = False) -> tuple[int, str]:
    """Side of what batches hold, and the reason.

    Args:
        skip: pass over pictures that cannot be read, if they are not more than half of those looked at.

    Raises:
        Refused: one cannot be read, or too many.
    """
    step = max(1, -(-len(paths) // _HEADERS))
    looked = paths[::step]
    sizes, lost = set(), Skips("train", len(looked))
    with quiet():
        for i, path in enumerate(looked):
            try:
                sizes.add(extent(path))
            except Unreadable as why:
                if not skip:
                    raise _unreadable(path, why) from None
                lost.add({i: (shown(path), str(why))})
    how = f"of {len(looked)} pictures looked at" if step > 1 else f"of all {len(looked)} pictures"
    width, height = next(iter(sizes))
    if len(sizes) == 1 and width == height:
        if width <= _NATIVE:
            return width, f"size {width}: that {how}"
        size = min(width, model_size or _LARGE)
        return size, f"size {size}: for the model; that {how} is {width}"
    size = model_size or _LARGE
    return (
        size,
        f"size {size}: {'the largest model input' if model_size else 'the usual'}; sizes {how} differ",
    )


def content(paths: list[str]) -> str:
    """A hash of the files' bytes, remembered between runs by (path, size, time of change).

    A file that is gone or cannot be opened counts as such: whether that matters is for the reading to say.
    """
    stats = [(os.path.abspath(path), *_stat(path)) for path in paths]
    key = digest(stats)
    if (kept := _MEMOS.find(key)) is not None:
        return kept.decode()
    sizes = [size for _, size, _ in stats]
    step = 1 if sum(sizes) <= _HASHED else max(1, len(paths) // _SAMPLE)
    h = hashlib.blake2b(repr(sizes).encode(), digest_size=16)
    whole = True
    for path in paths[::step]:
        try:
            with open(path, "rb", opener=unblocked) as file:
                h.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError:
            h.update(b"unreadable")
            whole = False
    if whole:
        _MEMOS.keep(key, h.hexdigest().encode())
    return h.hexdigest()


def _stat(path: str) -> tuple[int, int]:
    """Bytes and time of change; -1 for a file that is gone."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
