"""States of a fit on disk: the newest two, each named by its own content, so a torn one is seen and passed over."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from sftc.errors import Refused
from sftc.store.files import inner, replacing

KEEP = 2
_NAME = re.compile(r"(\d{10})-([0-9a-f]{32})\.pt")


class _Hashing:
    """A file whose writes are hashed. torch.save writes from front to back."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self.file = file
        self.digest = digest
        self.failed: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            self.digest.update(data)
            return self.file.write(data)
        except BaseException as e:
            self.failed = e
            raise

    def flush(self) -> None:
        self.file.flush()


class Checkpoints:
    """A folder of states. Each is a `weights_only` pickle of plain types and tensors: reading one executes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Newest first."""
        found = [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)] if self.folder.is_dir() else []
        return sorted(found, key=lambda p: (int(p.name[:10]), p.stat().st_mtime_ns), reverse=True)

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep `state`, and of the older ones the newest. `state["step"]` orders them."""
        older = self.files()
        digest = hashlib.blake2b(digest_size=16)

        def target() -> Path:
            return self.folder / f"{state['step']:010d}-{digest.hexdigest()}.pt"

        inner(self.folder)
        with replacing(target) as temp, temp.open("wb") as f:
            _save(dict(state), _Hashing(f, digest))
        for file in [p for p in older if p != target()][KEEP - 1 :]:
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
                return state
            say(f"checkpoint {file} is damaged; going back to the one before")
        if files:
            raise Refused(f"no checkpoint in {self.folder} can be read back; train a new run")
        return None

    def drop(self) -> None:
        """A finished run keeps its weights, not its optimizer."""
        for file in self.files():
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _save(state: dict[str, Any], file: _Hashing) -> None:
    try:
        torch.save(state, file)  # type: ignore[arg-type]
    except RuntimeError as e:  # torch hides why: the disk is full, or a second signal ends the run here
        raise file.failed or e.__context__ or e from None


def _load(file: Path) -> dict[str, Any] | None:
    match = _NAME.fullmatch(file.name)
    try:
        with file.open("rb") as f:
            if match is None or hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest() != match[2]:
                return None
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever the bytes led it to
        return None
