"""One process at a time writes a run. The lock dies with its process, so nobody has to clean up after a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sftc.errors import Refused
from sftc.store.files import own_file, told

try:
    import fcntl
except ImportError:  # Windows has no such locks; there two processes in one folder are the user's own care
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    POSIX record locks, not flock: those would live on in a data worker that outlives a killed run.

    Raises:
        Refused: another living process holds it.
        Stopped: the folder cannot be written to, or what is called so is no file of it.
    """
    path = folder / NAME
    with told(path):
        file = _taken(path)
    with contextlib.suppress(OSError):  # a full disk: the lock is ours without a name in it
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone by now
            path.unlink()
        os.close(file)


def _taken(path: Path) -> int:
    while True:
        file = own_file(path, os.O_RDWR)
        if _take(file, path):
            return file
        os.close(file)


def _take(file: int, path: Path) -> bool:
    """Whether the lock was taken on the file that stands there now, not on one that its holder just removed."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EAGAIN):
            return True  # a file system without locks: as on Windows
        holder = os.read(file, 200).decode(errors="replace") or "another process"
        os.close(file)
        raise Refused(f"{path.parent} is being written by {holder}; {_way_out(holder, path)}") from None
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _way_out(holder: str, path: Path) -> str:
    here = socket.gethostname()
    way = "wait for it, or choose another out="
    if " on " not in holder or holder.endswith(f" on {here}"):
        return way
    # A server of files may keep the lock of a machine that is gone.
    return f"{way}; this is {here}: if nothing runs over there any more, remove {path}"
