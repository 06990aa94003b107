"""One view of a teacher's stored answers as a file: used only if it is whole, and about exactly what is asked for."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.store.files import hash_tensors, write_tensors
from sftc.store.lock import NAME as LOCK
from sftc.store.reading import read_meta, read_tensors

FORMAT = 1  # belongs into the marks of every file

Parts = dict[str, Tensor]


class Unfit(Exception):
    """Why a file is not used, in words that follow its name."""


class Answered:
    """What a teacher said about every row in one view. The tensors are mapped: what nobody looks at takes no memory."""

    __slots__ = ("bytes", "classes", "parts", "temperatures")

    def __init__(self, parts: Parts, classes: int, temperatures: Sequence[float], size: int) -> None:
        self.parts = parts  # logits fp16 [n, C, *pos]; or values fp16 and index int32 [n, k], rest float32 [n, T]
        self.classes = classes
        self.temperatures = list(temperatures)  # of the columns of `rest`
        self.bytes = size

    def form(self) -> tuple[object, ...]:
        """What all views of one teacher have in common."""
        return self.classes, *sorted((k, *p.shape[1:]) for k, p in self.parts.items() if k != "rest")


def write(path: Path, parts: Parts, classes: int, temperatures: Sequence[float], rows: Tensor, marks: str) -> None:
    """Raises Stopped: the disk does not take it."""
    about = {"row": rows, "classes": torch.tensor([classes])}
    if "rest" in parts:
        about["temperatures"] = torch.tensor(temperatures, dtype=torch.float64)
    write_tensors(path, parts | about, {"marks": marks, "hash": hash_tensors(parts | about)})


def read(path: Path, rows: Tensor, marks: str, topk: int | None) -> Answered:
    """Raises Unfit: the file is not about these rows and marks, is not of this form, or not what was written."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise Unfit("is not a plain file")
    try:
        meta, parts = read_meta(path), read_tensors(path)
    except Refused:
        raise Unfit("is damaged") from None
    if meta.get("marks") != marks:
        raise Unfit("is about something else")
    if meta.get("hash") != hash_tensors(parts):
        raise Unfit("is damaged")
    none = torch.empty(0)
    row, classes = parts.pop("row", none), parts.pop("classes", none)
    temperatures = parts.pop("temperatures", none).flatten().tolist()
    if row.dtype != torch.int64 or not torch.equal(row, rows):
        raise Unfit("is about other rows")
    if not all(0 < t < math.inf for t in temperatures) or (classes.dtype, len(classes)) != (torch.int64, 1):
        raise Unfit("does not hold answers")
    if not _sound(parts, len(rows), int(classes), topk, len(temperatures)):
        raise Unfit("does not hold answers")
    return Answered(parts, int(classes), temperatures, info.st_size)


def _sound(parts: Parts, n: int, classes: int, topk: int | None, temperatures: int) -> bool:
    """Whether names, types, shapes and ranges are those of answers: an index out of range would crash a GPU."""
    if topk is None or topk >= classes:
        positions = tuple(parts["logits"].shape[2:]) if "logits" in parts else ()
        want = {"logits": (torch.float16, (n, classes, *positions))}
    else:
        want = {
            "values": (torch.float16, (n, topk)),
            "index": (torch.int32, (n, topk)),
            "rest": (torch.float32, (n, temperatures)),
        }
    if {k: (p.dtype, tuple(p.shape)) for k, p in parts.items()} != want or any(p.numel() == 0 for p in parts.values()):
        return False
    ends = {k: [float(x) for x in p.aminmax()] for k, p in parts.items()}  # without a copy of what is mapped
    if not all(math.isfinite(x) for pair in ends.values() for x in pair):
        return False
    return "index" not in ends or 0 <= ends["index"][0] <= ends["index"][1] < classes


def writable(folder: Path) -> bool:
    """Whether answers can be kept in RUN/answers/KEY, which is made: not in a run that is read-only, or leads away."""
    try:
        for part in (folder.parent, folder):
            part.mkdir(exist_ok=True)
            if part.is_symlink():
                return False
        lock = folder / LOCK
        if os.path.lexists(lock):
            info = lock.lstat()  # taking it truncates it, so it must not be somebody's file under another name
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or not os.access(lock, os.R_OK | os.W_OK):
                return False
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
