"""Files that are whole or not there: temp + fsync + rename. Tensors as safetensors, and their hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sftc.errors import Stopped
from sftc.filed import Part, stretches

DTYPES = {torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}  # of parts: their names in safetensors
_UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]{6}\.tmp")  # of `replacing`


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or gone is one line, and no reason to lose what was written before."""
    try:
        yield
    except OSError as e:
        why = e.strerror or str(e)
        raise Stopped(f"cannot write {path}: {why}; what was saved before is whole", 1, "failed") from None


@contextlib.contextmanager
def replacing(path: Path | Callable[[], Path]) -> Iterator[Path]:
    """A file to write to that then takes the place of `path`: after a power cut the old one is there, or the new one.

    Args:
        path: the file, or a function called when all is written (its name depends on the content), in a folder that
            exists: a run folder that somebody removed is not made again.
    """
    folder = path.parent if isinstance(path, Path) else path().parent
    name = path.name if isinstance(path, Path) else "new"
    temp = folder / f".{name}.{os.getpid()}.{secrets.token_hex(3)}.tmp"
    with told(folder / name):
        try:
            yield temp
            with temp.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(temp, path if isinstance(path, Path) else path())
            directory = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(directory)  # the rename itself
            finally:
                os.close(directory)
        finally:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Take away what a killed process was just writing. For who holds the run's lock: nobody else writes there."""
    for path in folder.glob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def appended(path: Path, text: str) -> None:
    """Add a line to a file; a kill may leave it torn, which its readers expect."""
    with told(path), open(own_file(path, os.O_WRONLY | os.O_APPEND), "a") as f:
        f.write(text)


def own_file(path: Path, flags: int) -> int:
    """Open a file that is written in place, made if it is missing; a descriptor.

    Raises:
        OSError: it is a link, or anything but a file of this folder alone: what is written would land elsewhere.
    """
    file = os.open(path, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
    about = os.fstat(file)
    if stat.S_ISREG(about.st_mode) and about.st_nlink <= 1:
        return file
    os.close(file)
    raise OSError(errno.ELOOP, "it is a link or no file; remove it")


def inner(folder: Path) -> Path:
    """A folder inside a run, made if it is missing."""
    with told(folder):
        folder.mkdir(exist_ok=True)
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temp:
        temp.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Safetensors. Tied weights are stored once each: the format refuses shared memory."""
    plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    write_bytes(path, save(plain, dict(meta or {})))


def write_parts(path: Path, parts: Mapping[str, Part], meta: Mapping[str, str]) -> None:
    """`write_tensors` of what may lie in files itself: no more than a stretch of it is in memory."""
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))  # as the format has it: all aligned
    about: dict[str, Any] = {"__metadata__": dict(meta)}
    end = 0
    for name in order:
        part, begin = parts[name], end
        end += part.nbytes
        about[name] = {"dtype": DTYPES[part.dtype], "shape": list(part.shape), "data_offsets": [begin, end]}
    head = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as temp, temp.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            for some in stretches(parts[name]):
                f.write(some.contiguous().numpy().data)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors: says which weights a prediction came from."""
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")  # no copy: it may be mapped
    return h.hexdigest()


def plain(value: Any) -> Any:
    """A config or result of plain types: what YAML and JSON can hold. NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        return plain(value.item())
    return str(value)
