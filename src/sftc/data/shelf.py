"""Small things that took a while to make, kept between runs below the user's cache folder; losing them costs only time.

What is read was written whole: a digest stands before each. The folder has an upper size; what was not used for the
longest makes room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_DIGEST = 16  # bytes before the content


def place(name: str) -> Path:
    """$XDG_CACHE_HOME/sftc/<name>."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftc" / name


class Shelf:
    """A folder of kept contents. A disk that cannot be written or read is no trouble: then nothing is kept.

    Args:
        folder: where; asked again every time, as it may change with the environment.
        most: bytes it may hold. Several processes count each for itself, so it may be a little more.
    """

    def __init__(self, folder: Callable[[], Path], most: int) -> None:
        self.folder, self.most = folder, most
        self._held: int | None = None  # bytes, once looked at

    def find(self, key: str) -> bytes | None:
        """What was kept under a key; None: nothing, or it is damaged."""
        path = self.folder() / key
        with contextlib.suppress(OSError):
            kept = path.read_bytes()
            if kept[:_DIGEST] == _digest(kept[_DIGEST:]):
                os.utime(path)  # used now
                return kept[_DIGEST:]
        return None

    def keep(self, key: str, content: bytes) -> None:
        with contextlib.suppress(OSError):
            folder = self.folder()
            folder.mkdir(parents=True, exist_ok=True)
            self._held = self._make_room(folder) if self._held is None or self._held > self.most else self._held
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                try:
                    file.write(_digest(content) + content)
                    file.flush()
                    os.replace(file.name, folder / key)
                except OSError:
                    os.unlink(file.name)
                    raise
            self._held += _DIGEST + len(content)

    def _make_room(self, folder: Path) -> int:
        """Bytes that are held; if they are too many, the half that was used last stays."""
        found = [(info.st_mtime_ns, info.st_size, path) for path in folder.iterdir() if (info := path.stat())]
        held = sum(size for _, size, _ in found)
        if held > self.most:
            for _, size, path in sorted(found):
                if held <= self.most // 2:
                    break
                path.unlink(missing_ok=True)
                held -= size
        return held


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
