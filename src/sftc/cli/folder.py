"""Which folder a run or a sweep writes to: unique, never one in use, and gone again if nothing came of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from sftc import folders
from sftc.errors import Refused

OUTPUTS = Path("outputs")


def free(path: Path) -> Path:
    """`path`, if a run may be written there.

    Raises:
        Refused: it is a file, or a folder that holds something.
    """
    if path.is_file():
        raise Refused(f"out={path} is a file; name a new folder")
    if path.is_dir() and not folders.free(path):
        if _finished(path):
            raise Refused(f"out={path} holds a finished run and is never overwritten; choose another out=")
        way_out = f"go on with it by resume={path}, or " if (path / "config.yaml").exists() else ""
        raise Refused(f"out={path} is not empty and is never overwritten; {way_out}choose another out=")
    return path


@contextlib.contextmanager
def reserved(name: str) -> Iterator[Path]:
    """`outputs/<date>/<time>-<name>`, made by this call and no other; taken away if it stays empty."""
    day = OUTPUTS / time.strftime("%Y-%m-%d")
    ours = [parent for parent in (day, OUTPUTS) if not parent.exists()]
    made: list[Path] = []  # noted before it is made: a signal may come right after
    try:
        yield _make(day, f"{time.strftime('%H%M%S')}-{name}", made)
    finally:
        for folder in (*made, *ours):
            with contextlib.suppress(OSError):  # it holds a run by now
                folder.rmdir()


def _finished(path: Path) -> bool:
    if not (path / "status.json").is_file():  # not even a pipe, which would never answer
        return False
    try:
        return json.loads((path / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _make(day: Path, name: str, made: list[Path]) -> Path:
    """The first free of these folders, also noted in `made`."""
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = day / f"{name}{suffix}"
        made[:] = [path]
        try:
            path.mkdir(parents=True)
            return path
        except (FileExistsError, FileNotFoundError):  # another run has it, or took its own empty day away just now
            made.clear()
            continue
        except OSError as error:
            made.clear()
            raise Refused(f"{path} cannot be made ({error.strerror}); choose a folder with out=") from None
    raise Refused(f"{day} cannot take another run; choose a folder with out=")
