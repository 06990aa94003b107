"""States of a fit on disk: the newest two, each named by its own checksum, so a torn one is seen and passed over."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from sftc.errors import Refused
from sftc.store.files import inner, replacing, tidy, told
from sftc.store.reading import opened

PLAIN = 32 << 20  # bytes of the description of a state; ten thousand tensors take a few

_NAME = re.compile(r"(\d{10})-\d+-([0-9a-f]{8})\.pt")  # number, optimizer steps, checksum


class _Summing:
    """A file whose bytes are summed up as they come. torch.save writes from front to back.

    A CRC-32 is four times as fast as a hash, and nobody is to be kept from forging: no damage shall go unseen.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sum = 0
        self.failed: BaseException | None = None  # torch says only that something did

    def write(self, data: Any) -> int:
        self.sum = zlib.crc32(data, self.sum)
        try:
            return self.file.write(data)
        except BaseException as e:
            self.failed = e
            raise

    def flush(self) -> None:
        self.file.flush()


class Checkpoints:
    """A folder of states. Each is a `weights_only` pickle of plain types and tensors: reading one executes nothing.

    They are numbered in the order of their writing, which no clock can change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: Path | None = None  # the last one read or written

    def files(self) -> list[Path]:
        """Newest first."""
        found = [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)] if self.folder.is_dir() else []
        return sorted(found, key=_number, reverse=True)

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep `state`, and of the older ones the last that was whole.

        Raises:
            Stopped: the disk is full, read-only or gone; what was there before still is.
        """
        with told(inner(self.folder)):
            older = self.files()
            number, summed = _number(older[0]) + 1 if older else 1, 0

            def target() -> Path:
                return self.folder / f"{number:010d}-{state['step']}-{summed:08x}.pt"

            with replacing(target) as temp, temp.open("wb") as f:
                summed = _save(dict(state), f)
            spare = self._whole or (older[0] if older else None)
            self._whole = target()
            for file in older:
                if file != spare:
                    file.unlink(missing_ok=True)

    def read(self, say: Callable[[str], None] = warnings.warn) -> dict[str, Any] | None:
        """The newest whole state; None if none was ever written. `say` is told of damaged ones.

        Raises:
            Refused: there are some, and none is whole.
        """
        files = self.files()
        for file in files:
            state = _load(file)
            if state is not None:
                self._whole = file
                return state
            say(f"checkpoint {file} is damaged; going back to the one before")
        if files:
            raise Refused(f"no checkpoint in {self.folder} can be read back; train a new run")
        return None

    def drop(self) -> None:
        """A finished run keeps its weights, not its optimizer."""
        with contextlib.suppress(OSError):
            for file in self.files():
                file.unlink(missing_ok=True)
            tidy(self.folder)
            self.folder.rmdir()


def _number(file: Path) -> int:
    return int(file.name[:10])


def _save(state: dict[str, Any], file: IO[bytes]) -> int:
    """Returns the checksum of what was written."""
    summing, theirs = _Summing(file), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # torch sums up every part, but never looks at that
    try:
        torch.save(state, summing)  # type: ignore[arg-type]
    except RuntimeError as e:  # torch hides why: the disk is full, or a second signal ends the run here
        raise summing.failed or e.__context__ or e from None
    finally:
        torch.serialization.set_crc32_options(theirs)
    return summing.sum


def _load(file: Path) -> dict[str, Any] | None:
    match, found = _NAME.fullmatch(file.name), 0
    try:
        with opened(file) as f:
            while block := f.read(1 << 20):
                found = zlib.crc32(block, found)
            if match is None or found != int(match[2], 16):
                return None
            _sized(f)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever the bytes led it to
        return None
    return state if isinstance(state, dict) else None


def _sized(file: IO[bytes]) -> None:
    """Raises ValueError: the archive would unfold to more than the file holds; torch writes everything as it is."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    if any(p.compress_type != zipfile.ZIP_STORED for p in parts):
        raise ValueError("compressed")
    if sum(p.file_size for p in parts) > os.fstat(file.fileno()).st_size:
        raise ValueError("parts that share their bytes")
    if any(p.file_size > PLAIN for p in parts if p.filename.endswith(".pkl")):
        raise ValueError("too large to be a description of tensors")
