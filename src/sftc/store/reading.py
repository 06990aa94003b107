"""Reading files that somebody else may have made: regular ones of a believable size, in the form they should have.

A run folder is data. A link that leaves it, a pipe that never answers, a gigabyte of brackets: each is refused before
anything is read from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sftc.errors import Refused
from sftc.filed import Filed, Held
from sftc.store.files import DTYPES

TEXT = 16 << 20  # bytes of a text file; the largest honest one names some 20,000 classes
LINES = 256 << 20  # of metrics.jsonl
DEEPEST = 40  # levels of a stored value
TYPES = {name: dtype for dtype, name in DTYPES.items()}
LARGEST = 2**63  # no whole number that is stored gets there


def within(folder: Path, path: Path) -> Path:
    """`path`, which lies in `folder`.

    Raises:
        Refused: a symbolic link on the way leads out of it.
    """
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name no file can have
        inside = False
    if not inside:
        raise Refused(f"{path} is a link out of its run folder, and is not followed; put the file itself there")
    return path


@contextlib.contextmanager
def opened(path: Path, most: int | None = None) -> Iterator[BufferedReader]:
    """A regular file of at most `most` bytes, or of what memory has room for.

    Raises:
        Refused: it is something else (a pipe would wait forever), too large, or may not be read.
        FileNotFoundError: it is not there.
    """
    with _regular(path) as f:
        size, room = os.fstat(f.fileno()).st_size, psutil.virtual_memory().available if most is None else most
        if size > room:
            raise Refused(f"{path} has {size:,} bytes; no more than {room:,} can be read")
        yield f


def _regular(path: Path) -> BufferedReader:
    """Raises Refused, FileNotFoundError: as `opened`."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Refused(f"{path} cannot be read: {e.strerror}") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Refused(f"{path} is not a file")
    return os.fdopen(file, "rb")


def lines(path: Path) -> list[str]:
    """The lines of a text file, none if it is not there; bytes that are no text become question marks."""
    with contextlib.suppress(FileNotFoundError), opened(path, LINES) as f:
        return f.read().decode(errors="replace").splitlines()
    return []


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None: there is no such file. Raises Refused: it holds anything else."""
    try:
        with opened(path, TEXT) as f:
            value = json.loads(f.read().decode(), parse_constant=_no_number)
        return _object(path, value)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as e:
        raise Refused(f"{path} cannot be read as JSON ({_line(e)})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain YAML: no tags, no anchors. Raises Refused: it holds anything else, or is not there."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with opened(path, TEXT) as f:
            text = f.read().decode()
        depth = 0
        for event in yaml.parse(text, loader):  # event by event: a tree could be as deep and as large as it liked
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError(f"line {event.start_mark.line + 1}: anchors, aliases and tags are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"line {event.start_mark.line + 1}: nested too deep")
        return _object(path, yaml.load(text, loader))
    except FileNotFoundError:
        raise Refused(f"{path} does not exist") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as e:
        raise Refused(f"{path} cannot be read as YAML ({_line(e)})") from None


def _object(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{path} should hold an object of keys and values; it holds no keys")
    _plain(value, 0)
    return value


def _plain(value: Any, depth: int) -> None:
    """Raises ValueError: something in `value` is no plain text, no finite number, or nested too deep."""
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        value.encode()  # half a surrogate pair can be neither printed nor written
    elif isinstance(value, int | float):
        if not (math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST):
            raise ValueError(f"{str(value)[:20]} is no number to be stored")
    elif isinstance(value, list):
        for one in value:
            _plain(one, depth + 1)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {str(key)[:20]} is no text")
            _plain(key, depth)
            _plain(one, depth + 1)
    elif value is not None:
        raise ValueError(f"{str(value)[:20]} is a {type(value).__name__}")


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises Refused: the file is missing, not whole, or larger than memory."""
    with _whole(path):
        return load_file(path)


def read_meta(path: Path) -> dict[str, str]:
    """The texts beside the tensors. Raises Refused: as `read_tensors`."""
    with _whole(path), safe_open(path, "pt") as f:
        return f.metadata() or {}


def read_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor, from the header alone. Raises Refused: as `read_tensors`."""
    with _whole(path), safe_open(path, "pt") as f:
        parts = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def read_parts(path: Path) -> dict[str, Filed]:
    """Safetensors that stay where they are. Raises Refused: missing, not whole, or of types that no part has."""
    found: dict[str, Filed] = {}
    try:
        with _regular(path) as file:
            held = Held(file)
            size = os.fstat(file.fileno()).st_size
            head = int.from_bytes(file.read(8), "little")
            if not 2 <= head <= min(TEXT, size - 8):
                raise ValueError("its header is cut")
            about = _object(path, json.loads(file.read(head).decode()))
            about.pop("__metadata__", None)
            for name, one in about.items():
                begin, end = (8 + head + int(at) for at in one["data_offsets"])
                shape = tuple(int(n) for n in one["shape"])
                part = Filed(held, TYPES[one["dtype"]], shape, begin)
                if not shape or min(shape) < 0 or not 8 + head <= begin <= end <= size or part.nbytes != end - begin:
                    raise ValueError(f"{name} has no place in it")
                found[name] = part
    except FileNotFoundError:
        raise Refused(f"{path} does not exist") from None
    except (LookupError, TypeError, ValueError, RecursionError, OSError) as e:
        raise Refused(f"{path} is not a whole safetensors file ({_line(e)})") from None
    return found


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        with opened(path):
            pass
        yield
    except FileNotFoundError:
        raise Refused(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise Refused(f"{path} is not a whole safetensors file ({_line(e)})") from None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
