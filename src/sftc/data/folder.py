"""Pictures in folders: one folder per class, under train/, val/ and test/ or directly under the root."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sftc.data.rows import Table, digest
from sftc.data.split import Raw
from sftc.errors import Refused, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_HEADERS = 500  # pictures whose size is looked up to choose data.size
_NATIVE = 64  # pictures up to this side are kept as they are
_LARGE = 224
_HASHED = 2 << 30  # a folder with more bytes is fingerprinted by names, sizes and a sample of its contents
_SAMPLE = 1000


class FolderTable:
    """Pictures on disk, decoded when read: RGB, the middle square, resized to `size` (bilinear, antialiased).

    Row numbers follow the sorted class names, then the sorted paths.
    """

    def __init__(self, root: Path, classes: list[str], size: int, files: list[tuple[str, int]]) -> None:
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

    def read(self, rows: Tensor) -> Tensor:
        pictures = [decode(self.path(row), self.shape[-1]) for row in rows.tolist()]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            content = _content([self.path(i) for i in range(len(self.files))])
            names = b"\0".join(self.files.tolist())
            self._fingerprint = digest(content, names, self.classes, self.shape, self.target)
        return self._fingerprint


def decode(path: str, size: int) -> np.ndarray:
    """A picture as uint8 [size, size, 3]."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (size, size))  # a large JPEG is decoded at the next larger half, quarter or eighth
            if "transparency" in picture.info:
                picture = picture.convert("RGBA")
            picture = picture.convert("RGB")
            side = min(picture.size)
            if picture.size != (size, size):
                left, top = (picture.width - side) / 2, (picture.height - side) / 2
                box = (left, top, left + side, top + side)
                picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"{path} cannot be read as a picture: {str(error).splitlines()[0]}") from None


def locate(root: str | None) -> dict[str, Path]:
    """The folder of each split; only "train" for a single folder of class folders.

    Raises:
        Refused: no root, no such folder, or none that holds training pictures.
    """
    if root is None:
        raise Refused("data.root is not set: a folder with train/, val/ and test/, or with one folder per class")
    path = Path(root).expanduser()
    if not path.is_dir():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise Refused(f"data.root={path} is not a folder{near} (looked for train/<class>/*.png or <class>/*.png in it)")
    found = {s: path / n for s, names in _SPLITS.items() for n in names if (path / n).is_dir()}
    if not found:
        return {"train": path}
    if "train" not in found:
        raise Refused(f"data.root={path} has {', '.join(sorted(p.name for p in found.values()))} but no train folder")
    return found


def image_folder(*, root: str | None = None, size: int | None = None, model_size: int | None = None) -> Raw:
    """One folder per class, split by folders or by seed.

    Args:
        size: side of what batches hold. None: the pictures' own if all looked at are squares of one side up
            to 64, else `model_size`, the largest model input of the run, or 224; squares of one larger side
            are never blown up.
    """
    places = locate(root)
    classes = class_folders(places["train"])
    for split, folder in places.items():
        _same_classes(classes, class_folders(folder), split)
    files = list_files(places["train"], classes)
    notes = []
    if size is None:
        size, why = choose_size([os.path.join(places["train"], f) for f, _ in files], model_size)
        notes.append(why)
    side = size

    def table(split: str) -> Callable[[], Table]:
        folder = places[split]
        return lambda: FolderTable(folder, classes, side, files if split == "train" else list_files(folder, classes))

    return Raw("classes", classes, {s: table(s) for s in places}, notes)


def class_folders(folder: Path) -> list[str]:
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise Refused(f"{folder} holds no class folders (looked for {folder}/<class>/*.png)")
    return names


def _same_classes(train: list[str], other: list[str], split: str) -> None:
    extra, lacking = sorted(set(other) - set(train)), sorted(set(train) - set(other))
    if extra or lacking:
        said = [f"{what} {', '.join(names[:5])}" for what, names in (("adds", extra), ("lacks", lacking)) if names]
        raise Refused(f"the {split} folder has other classes than train: it {' and '.join(said)}")


def list_files(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """Every picture below the class folders: (path relative to `folder`, class number)."""
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        found = []
        for place, _, names in os.walk(folder / name, followlinks=True):
            here = os.path.relpath(place, folder)
            found += [os.path.join(here, n) for n in names if n.lower().endswith(EXTENSIONS) and n[0] != "."]
        if not found:
            raise Refused(f"the class folder {folder / name} holds no pictures ({' '.join(EXTENSIONS)}): remove it")
        files += [(f, label) for f in sorted(found)]
    return files


def choose_size(paths: list[str], model_size: int | None) -> tuple[int, str]:
    """Side of what batches hold, and the reason."""
    step = max(1, -(-len(paths) // _HEADERS))
    looked = paths[::step]
    sizes = {_header(p) for p in looked}
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


def _header(path: str) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"{path} cannot be read as a picture: {str(error).splitlines()[0]}") from None


def _content(paths: list[str]) -> str:
    """A hash of the files' bytes, remembered between runs by (path, size, time of change)."""
    stats = [(p, (s := os.stat(p)).st_size, s.st_mtime_ns) for p in paths]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftc" / "fingerprints"
    memo = base / digest([(os.path.abspath(p), *rest) for p, *rest in stats])
    try:
        return memo.read_text()
    except OSError:
        pass
    sizes = [s for _, s, _ in stats]
    step = 1 if sum(sizes) <= _HASHED else max(1, len(paths) // _SAMPLE)
    h = hashlib.blake2b(repr(sizes).encode(), digest_size=16)
    for path in paths[::step]:
        with open(path, "rb") as file:
            h.update(hashlib.file_digest(file, "blake2b").digest())
    _remember(memo, h.hexdigest())
    return h.hexdigest()


def _remember(memo: Path, text: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, memo)
    except OSError:
        return  # a home that cannot be written to costs a second hash next time, nothing else
