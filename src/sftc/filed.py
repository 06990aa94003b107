"""A tensor that lies in a file and is read a stretch at a time: what nobody looks at takes no memory.

It is not mapped: of a mapped file, what was looked at once stays with the process until somebody needs the memory.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from sftc.errors import Stopped

STRETCH = 1 << 16  # rows read or written at once
KNOWN = {torch.float16: np.float16, torch.uint8: np.uint8, torch.int64: np.int64}  # what may lie in one


class Held:
    """An open file of somebody else, kept open until nobody reads from it any more."""

    __slots__ = ("number",)

    def __init__(self, file: IO[bytes]) -> None:
        self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self.number)


class Filed:
    """A tensor [n, ...] from byte `start` of an open file on.

    Raises, when it is read:
        Stopped: the file has become shorter meanwhile, or the disk fails.
    """

    __slots__ = ("_file", "_start", "dtype", "shape")

    def __init__(self, file: Held, dtype: torch.dtype, shape: tuple[int, ...], start: int = 0) -> None:
        self._file, self._start = file, start
        self.dtype, self.shape = dtype, shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return len(self) * self._wide()

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """The rows of a slice without steps, or those that a sorted long tensor names."""
        if isinstance(at, slice):
            first, end, step = at.indices(len(self))
            assert step == 1
            return self._read(first, max(first, end))
        out = torch.empty((len(at), *self.shape[1:]), dtype=self.dtype)
        for a in range(0, len(self), STRETCH):
            lo, hi = torch.searchsorted(at, torch.tensor([a, a + STRETCH])).tolist()
            if lo < hi:
                out[lo:hi] = self._read(a, min(a + STRETCH, len(self)))[at[lo:hi] - a]
        return out

    def _read(self, first: int, end: int) -> Tensor:
        out = np.empty((end - first, *self.shape[1:]), dtype=KNOWN[self.dtype])
        room, place = out.data.cast("B") if out.size else memoryview(b""), self._start + first * self._wide()
        done = 0
        while done < len(room):
            try:
                got = os.preadv(self._file.number, [room[done:]], place + done)
            except OSError as e:
                raise Stopped(f"cannot read stored scores: {e.strerror}", 1, "failed") from None
            if got == 0:
                raise Stopped("stored scores were cut short while they were being read", 1, "failed")
            done += got
        return torch.from_numpy(out)

    def _wide(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


Part = Tensor | Filed


def stretches(part: Part) -> Iterator[Tensor]:
    """All of it, a stretch at a time."""
    for a in range(0, len(part), STRETCH):
        yield part[a : a + STRETCH]


class Spool:
    """Rows of one form, written one after the other into a file without a name, which is gone with its last reader.

    Args:
        folder: where it lies, if that can be written: on the disk the run is kept on, not in a /tmp of memory.
    """

    def __init__(self, folder: Path | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self._place = folder if folder is not None and os.access(folder, os.W_OK | os.X_OK) else None
        self._dtype, self._shape, self._count = dtype, shape, 0
        with _told(self._place):
            self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115  (`whole` closes it)

    def add(self, rows: Tensor) -> None:
        """Raises Stopped: the disk does not take them."""
        with _told(self._place):
            self._file.write(rows.contiguous().numpy().data)
        self._count += len(rows)

    def whole(self) -> Filed:
        with _told(self._place):
            held = Held(self._file)
            self._file.close()  # and written to the end
        return Filed(held, self._dtype, (self._count, *self._shape))


@contextlib.contextmanager
def _told(place: Path | None) -> Iterator[None]:
    """A full disk is one line."""
    try:
        yield
    except OSError as e:
        where, why = place or tempfile.gettempdir(), e.strerror or str(e)
        line = f"cannot write scores into {where}: {why}; what was saved before is whole"
        raise Stopped(line, 1, "failed") from None
