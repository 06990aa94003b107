"""Small files in the formats of real data sets."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets


def write_mnist(folder: Path, *, zipped: bool, n: int = 60) -> np.ndarray:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * n, 28, 28), dtype=np.uint8)
    for stem, some in (("train", pixels[:n]), ("t10k", pixels[n:])):
        labels = np.arange(n, dtype=np.uint8) % 10
        for what, array in (("images-idx3", some), ("labels-idx1", labels)):
            head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
            path = folder / f"{stem}-{what}-ubyte"
            if zipped:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(head + array.tobytes()))
            else:
                path.write_bytes(head + array.tobytes())
    return pixels


def write_cifar(root: Path, name: str, monkeypatch) -> np.ndarray:
    """Twenty rows per file in the published format, with torchvision's checksums set to theirs."""
    cls = getattr(datasets, name)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 3072), dtype=np.uint8)
    key, classes = ("labels", 10) if name == "CIFAR10" else ("fine_labels", 100)
    rows = {"data": pixels, key: [i % classes for i in range(20)]}

    def dump(file: str, content: dict) -> str:
        raw = pickle.dumps(content)
        (folder / file).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for files in ("train_list", "test_list"):
        monkeypatch.setattr(cls, files, [[file, dump(file, rows)] for file, _ in getattr(cls, files)])
    meta = dict(cls.meta)
    names = {meta["key"]: [f"name{i}" for i in range(classes)]}
    monkeypatch.setattr(cls, "meta", meta | {"md5": dump(meta["filename"], names)})
    return pixels


def paint(path: Path, seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)


def make(root: Path, splits=("train", "val", "test"), classes=("cat", "dog"), n: int = 6, **more) -> Path:
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(n):
                paint(root / split / name / f"{i}.png", 100 * s + 10 * c + i, **more)
    return root


def write_table(path: Path, n: int = 300) -> Path:
    """A csv of mixed columns with gaps, and four that can be predicted: a word, a number, and two of 0 and 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["size,city,open,day,id,word,value,hot,dry"]
    for i in range(n):
        place, size = i * 5 % 11 % 3, i * 37 % 101
        cells = ["" if i % 7 == 0 else f"{size}.5", ["Bonn", "Oslo", "Rome"][place], "yes" if i % 3 else "no"]
        cells += [f"2024-0{1 + i % 9}-1{i % 10}", f"u{i * 7 % 29}"]
        value = size / 50 + place + i * 13 % 17 / 100
        cells += [["low", "mid", "high"][min(2, int(value / 1.4))], f"{value:.3f}", f"{size // 51}", f"{place // 2}"]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_bikes(path: Path, n: int = 200) -> Path:
    """The columns of UCI's hour.csv, with rows made up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed"
    lines = [f"{names},casual,registered,cnt"]
    for i in range(n):
        hour, casual = i % 24, i * 7 % 13
        rest = 10 * abs(12 - hour) + i % 5
        day = f"{i + 1},2011-01-{1 + i // 24:02},{1 + i % 4},{i % 2},{1 + i % 12},{hour},0,{i % 7},{i % 2},{1 + i % 3}"
        lines.append(f"{day},0.{i % 9}1,0.{i % 8}2,0.{i % 7}3,0.{i % 5}4,{casual},{rest},{casual + rest}")
    path.write_text("\n".join(lines) + "\n")
    return path
