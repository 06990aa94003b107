"""Data that need no download: scikit-learn's digits, and fake pictures of three kinds."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sftc.data import random
from sftc.data.rows import ArrayTable
from sftc.data.split import Raw
from sftc.errors import Refused, choose


def digits() -> Raw:
    """1,797 handwritten digits, 8x8 grey (UCI; bundled with scikit-learn). Its 0..16 become 0..255."""
    images, target = _digits()
    pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    table = ArrayTable(pixels, torch.from_numpy(target).long())
    return Raw("classes", [str(i) for i in range(10)], {"train": lambda: table})


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """What `load_digits` gives, from the same file: importing scikit-learn takes a second, reading this no time."""
    spec = find_spec("sklearn")  # finds, does not import
    folders = [] if spec is None else spec.submodule_search_locations or []
    for file in (Path(folder) / "datasets" / "data" / "digits.csv.gz" for folder in folders):
        if file.is_file():
            with gzip.open(file, "rt") as lines:
                rows = np.loadtxt(lines, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)  # type: ignore[return-value]


KINDS = ("classes", "labels", "values")
LARGEST = 100_000_000  # numbers of fake data; they take some 24 bytes each while they are made


def fake(
    *,
    kind: str = "classes",
    count: int = 600,
    size: int | None = None,
    channels: int = 3,
    outputs: int = 4,
    seed: int = 0,
) -> Raw:
    """Smooth patterns in noise, learnable in seconds: one pattern per class, label or value.

    Args:
        kind: "classes" (a row shows one pattern), "labels" (any of them) or "values" (all, each as strong as
            its target).
        count: rows.  size: side of the images, 16 if None.  outputs: patterns.  seed: of patterns and rows.
    """
    choose("data.kind", kind, KINDS)
    if kind == "classes" and outputs < 2:
        raise Refused(f"data.outputs={outputs}: classes need at least 2")
    size = 16 if size is None else size
    if (count + outputs) * (channels * size**2 + outputs) > LARGEST:
        raise Refused(f"data=fake makes up to {LARGEST:,} numbers; lower data.count, outputs, channels or size")
    target, strength = _answers(kind, count, outputs, seed)
    patterns = _patterns(outputs, channels, size, seed)
    noise = random.uniform(seed, np.arange(count), 1, range(channels * size * size))
    pixels = 128 + 50 * strength @ patterns + 60 * (noise - 0.5)
    images = torch.from_numpy(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    table = ArrayTable(images.view(count, channels, size, size), target)
    return Raw(
        kind,
        [f"{kind[:-1] if kind != 'classes' else 'class'}{i}" for i in range(outputs)],
        {"train": lambda: table},
    )


def _answers(kind: str, count: int, outputs: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Targets, and how strongly each row shows each pattern: [count, outputs]."""
    u = random.uniform(seed, np.arange(count), 2, range(outputs))
    if kind == "classes":
        target = (u[:, 0] * outputs).astype(np.int64)
        return torch.from_numpy(target), np.eye(outputs)[target]
    if kind == "labels":
        on = (u < 0.4).astype(np.float32)
        return torch.from_numpy(on), on.astype(np.float64)
    values = 2 * u - 1
    return torch.from_numpy(values.astype(np.float32)), values


def _patterns(outputs: int, channels: int, size: int, seed: int) -> np.ndarray:
    """Sums of a few waves, each of about unit size: [outputs, channels * size * size]."""
    waves = random.uniform(seed, np.arange(outputs * channels * 3), 3, range(3))
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    fy, fx, phase = (waves * [2.5, 2.5, 1]).T[:, :, None, None]
    pictures = np.cos(2 * np.pi * (fy * y + fx * x + phase)).reshape(outputs, channels, 3, size, size).sum(2)
    return pictures.reshape(outputs, -1)
