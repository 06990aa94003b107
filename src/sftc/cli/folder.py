"""Which folder a run or a sweep writes to: unique, never one that holds something, and gone again if nothing came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from sftc.errors import Refused

OUTPUTS = Path("outputs")


def free(path: Path) -> Path:
    """`path`, if a run may be written there.

    Raises:
        Refused: it is a file, or a folder that holds something.
    """
    if path.is_file():
        raise Refused(f"out={path} is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        way_out = (
            f"go on with it by resume={path}, or choose" if (path / "config.yaml").exists() else "choose"
        )
        raise Refused(f"out={path} is not empty and is never overwritten; {way_out} another out=")
    return path


@contextmanager
def reserved(name: str) -> Iterator[Path]:
    """`outputs/<date>/<time>-<name>`, made by this call and by no other; taken away again if it is empty at the end."""
    existing = [OUTPUTS.exists(), (OUTPUTS / time.strftime("%Y-%m-%d")).exists()]
    path = _make(OUTPUTS / time.strftime("%Y-%m-%d"), f"{time.strftime('%H%M%S')}-{name}")
    try:
        yield path
    finally:
        made = [path, *(p for p, was in ((path.parent, existing[1]), (OUTPUTS, existing[0])) if not was)]
        for folder in made:
            _drop(folder)


def _make(day: Path, name: str) -> Path:
    for suffix in chain([""], (f"-{i}" for i in count(2))):
        path = day / f"{name}{suffix}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except FileNotFoundError:  # another refused run took the empty day away in between
            continue
    raise AssertionError("count() ended")


def _drop(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # it holds a run by now
        pass
