"""The classic image sets mnist, fashion_mnist, cifar10 and cifar100: files as torchvision lays and downloads them."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sftc.data.rows import ArrayTable, Table
from sftc.data.split import Raw
from sftc.errors import Refused

_TIMEOUT = 20  # seconds a silent server may take before a download is given up
_MNIST = {
    f"{split}-{what}": f"{stem}-{what}-idx{dims}-ubyte"
    for split, stem in (("train", "train"), ("test", "t10k"))
    for what, dims in (("images", 3), ("labels", 1))
}
_FASHION = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
_CIFAR = {
    "CIFAR10": (
        "cifar-10-batches-py",
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"],
    ),
    "CIFAR100": ("cifar-100-python", ["train", "test", "meta"]),
}


def locate_mnist(root: str | None, name: str = "MNIST") -> Path:
    """The folder under `root` that holds the idx files, plain or .gz, in torchvision's layout or flat."""
    base = _given(root)
    folders = (base / name / "raw", base / "raw", base)
    for folder in folders:
        if all(_idx(folder, file) for file in _MNIST.values()):
            return folder
    raise _missing(base, f"{name}/raw/train-images-idx3-ubyte[.gz] and its three companions")


def locate_fashion(root: str | None) -> Path:
    return locate_mnist(root, "FashionMNIST")


def locate_cifar(root: str | None, name: str = "CIFAR10") -> Path:
    base = _given(root)
    folder, files = _CIFAR[name]
    for file in files:
        if not (base / folder / file).is_file():
            raise _missing(base, f"{folder}/{file}")
    return base


def locate_cifar100(root: str | None) -> Path:
    return locate_cifar(root, "CIFAR100")


def mnist(*, root: str | None = None, download: bool = False) -> Raw:
    """60,000 + 10,000 handwritten digits, 28x28 grey (LeCun et al. 1998)."""
    return _mnist("MNIST", [str(i) for i in range(10)], root, download, locate_mnist)


def fashion_mnist(*, root: str | None = None, download: bool = False) -> Raw:
    """60,000 + 10,000 pieces of clothing, 28x28 grey (Xiao et al. 2017)."""
    return _mnist("FashionMNIST", _FASHION, root, download, locate_fashion)


def cifar10(*, root: str | None = None, download: bool = False) -> Raw:
    """50,000 + 10,000 pictures of 10 classes, 32x32 colour (Krizhevsky 2009)."""
    return _cifar("CIFAR10", root, download, locate_cifar)


def cifar100(*, root: str | None = None, download: bool = False) -> Raw:
    """50,000 + 10,000 pictures of 100 classes, 32x32 colour (Krizhevsky 2009)."""
    return _cifar("CIFAR100", root, download, locate_cifar100)


def _mnist(name: str, classes: list[str], root: str | None, download: bool, locate: Callable) -> Raw:
    folder = _find(name, root, download, locate)

    def table(split: str) -> Callable[[], Table]:
        def load() -> Table:
            images, labels = (_read_idx(folder, _MNIST[f"{split}-{what}"]) for what in ("images", "labels"))
            if images.dim() != 3 or labels.shape != images.shape[:1]:
                shapes = f"images {list(images.shape)}, labels {list(labels.shape)}"
                raise Refused(f"the {split} files in {folder} do not belong together: {shapes}")
            return ArrayTable(images.unsqueeze(1), labels.long())

        return load

    return Raw("classes", classes, {s: table(s) for s in ("train", "test")})


def _cifar(name: str, root: str | None, download: bool, locate: Callable) -> Raw:
    from torchvision import datasets

    where = _find(name, root, download, locate)

    def read(train: bool) -> tuple[Table, list[str]]:
        try:
            # The files are pickles: torchvision opens them only if their checksums are the published ones.
            found = getattr(datasets, name)(where, train=train)
        except (RuntimeError, OSError) as error:
            raise Refused(f"data.root={where}: {_line(error)}; remove it and set data.download=true") from None
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2)
        return ArrayTable(images, torch.tensor(found.targets)), list(found.classes)

    train, classes = read(True)
    return Raw("classes", classes, {"train": lambda: train, "test": lambda: read(False)[0]})


def _find(name: str, root: str | None, download: bool, locate: Callable[[str | None], Path]) -> Path:
    try:
        return locate(root)
    except Refused:
        if not download:
            raise
    _download(name, _given(root))
    return locate(root)


def _download(name: str, root: Path) -> None:
    """Fetch beside the place, then move: a broken download, or two at once, leave nothing half-made."""
    from torchvision import datasets

    fresh = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        fresh = tempfile.mkdtemp(prefix=".download-", dir=root)
        with _patience(), contextlib.redirect_stdout(sys.stderr):
            getattr(datasets, name)(fresh, download=True)
        for file in [path for path in Path(fresh).rglob("*") if path.is_file()]:
            place = root / file.relative_to(fresh)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    except (OSError, RuntimeError, EOFError) as error:
        raise Refused(f"{name} could not be downloaded into {root}: {_line(error)}") from None
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _idx(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)


def _read_idx(folder: Path, file: str) -> Tensor:
    """The bytes of an idx file, uint8. Read here, as torchvision takes 1.5 s to import and cannot read .gz in place."""
    path = _idx(folder, file)
    assert path is not None
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dims = struct.unpack_from(">HBB", raw)
        if zeros or kind != 8:
            raise ValueError("it does not begin like one")
        shape = struct.unpack_from(f">{dims}I", raw, 4)
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise Refused(
            f"{path} is no readable idx file ({_line(error)}); remove it and set data.download=true"
        ) from None


def _given(root: str | None) -> Path:
    if root is None:
        raise Refused("data.root is not set: the folder that holds the files, or where data.download=true puts them")
    return Path(root).expanduser()


def _missing(root: Path, what: str) -> Refused:
    where = f"no {what} under data.root={root}" if root.is_dir() else f"data.root={root} does not exist (for {what})"
    return Refused(f"{where}; set data.root to the folder that holds it, or data.download=true")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
