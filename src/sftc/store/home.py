"""A folder of which one process is the master, and plain files in it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sftc.errors import Refused, Stopped
from sftc.store.files import plain, tidy, write_bytes, write_text
from sftc.store.lock import locked
from sftc.store.reading import read_json, within


class Home:
    """A folder that can be locked, and its JSON files, pages and pictures by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or until this process ends. Raises Refused: one is in."""
        self._lock.enter_context(locked(self.path))
        if (self.path / "config.yaml").is_file():  # else it may be anybody's folder
            self.tidy()

    def wait(self, stop: Callable[[], Stopped | None], say: Callable[[str], None]) -> None:
        """Make the folder and hold its lock, as soon as its holder lets go. Raises Stopped: asked to stop before."""
        said = False
        while True:
            self.path.mkdir(parents=True, exist_ok=True)  # its holder may have taken it away
            try:
                return self.lock()
            except Refused as e:
                if not said:
                    say(f"waiting: {str(e).partition(';')[0]}")
                said = True
            if (why := stop()) is not None:
                raise why
            time.sleep(0.2)

    def unlock(self) -> None:
        self._lock.close()

    def hand_over(self, other: Home) -> None:
        """Give the lock to another object of the same folder."""
        other._lock = self._lock.pop_all()

    def tidy(self) -> None:
        """Take away half-written files of a process that was killed. For who holds the lock."""
        for folder in (self.path, *(p for p in self.path.rglob("*") if p.is_dir() and not p.is_symlink())):
            tidy(folder)

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises Refused: there is no such file, or it holds no object."""
        value = self._json(name)
        if value is None:
            raise Refused(f"{self.path / name} does not exist; was this run written by sftc train?")
        return value

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_text(self.path / name, json.dumps(plain(content), indent=2))

    def write_page(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def write_picture(self, name: str, png: bytes) -> None:
        write_bytes(self.path / f"{name}.png", png)

    @property
    def pictures(self) -> list[str]:
        """Names of the files that show this run, in order."""
        return sorted(p.name for p in self.path.glob("[!.]*.png"))

    def _json(self, name: str) -> dict[str, Any] | None:
        return read_json(self.inside(name))

    def inside(self, *names: str) -> Path:
        """The path of something in this run. Raises Refused: a link there leads out of the folder."""
        return within(self.path, self.path.joinpath(*names))
