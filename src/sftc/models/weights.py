"""Weights from files and hubs: read without running anything, loaded by name and shape, the rest said."""

from __future__ import annotations

import logging
import pickle
import sys
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sftc.errors import Refused

NESTS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "module",
    "weights",
    "state_dict_ema",
    "model_ema",
    "student",
)
PATIENCE = 5.0  # seconds to find out whether a server answers at all


class Unavailable(Exception):
    """Published weights that cannot be had, in one line."""


class Card(NamedTuple):
    """What is published about an architecture."""

    size: int  # pixels of a side its weights were trained on
    mean: list[float]  # per channel, on a scale of 0 to 1
    std: list[float]
    fixed: bool  # built for one picture size


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, a torch state dict (also nested in a checkpoint), or a run folder.

    Raises:
        Refused: no such file, damaged, more than tensors in it, or none.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "model.safetensors"
    if not file.is_file():
        raise Refused(f"model.checkpoint={path}: there is no file {file}")
    content = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
    while isinstance(content, dict):  # its loss or accuracy may be a tensor beside it
        inner = next((content[k] for k in NESTS if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise Refused(f"model.checkpoint={path} holds no tensors by name; save model.state_dict() there")
    return tensors


def load(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Copy into `model` what has the same name (or alias) and shape in `path`, whatever prefixes wrappers left.

    Returns:
        {"path", "matched": n, "missing": [...], "unexpected": [...], "shape_mismatch": [...], "summary"}; all
        but `unexpected` by the model's own names, and `summary` says it in one short line.

    Raises:
        Refused: unreadable, or nothing matches.
    """
    own, aliases = model.state_dict(), getattr(model, "aliases", {})
    found = {aliases.get(name.removeprefix("module."), name): tensor for name, tensor in read(path).items()}
    names = _renamed(own, found)
    matched = {k: found[names[k]] for k in own if k in names and found[names[k]].shape == own[k].shape}
    # A lone bias that happens to have ten numbers is no match.
    if not any(t.ndim > 1 for t in matched.values()):
        raise Refused(
            f"model.checkpoint={path} is of another architecture: none of its {len(found)} tensors "
            f"(such as {next(iter(found))}) has the name and shape of one here (such as {next(iter(own))})"
        )
    model.load_state_dict(matched, strict=False)
    used = set(names.values())
    missing = [k for k in own if k not in names]
    unexpected = [k for k in found if k not in used]
    other = [k for k in own if k in names and k not in matched]
    said = [
        f"{len(matched)} of {len(own)} matched",
        *([f"missing {_short(missing)}"] if missing else []),
        *([f"skipped {_short(other)} (shape)"] if other else []),
        *([f"unused {_short(unexpected)}"] if unexpected else []),
    ]
    return {
        "path": str(path),
        "matched": len(matched),
        "missing": missing,
        "unexpected": unexpected,
        "shape_mismatch": other,
        "summary": "; ".join(said),
    }


def from_hub(repo: str, filename: str | None, download: bool) -> Path | None:
    """A file of a Hugging Face repository, from the local cache, else downloaded (None: it could be).

    Raises:
        Unavailable: not cached, and the hub cannot be reached or does not have it.
    """
    import huggingface_hub as hub

    repo, _, revision = repo.partition("@")
    names = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    # The hub's client would try for most of a minute before it says so.
    if hub.constants.HF_HUB_OFFLINE or not reachable(hub.constants.ENDPOINT):
        raise Unavailable(f"{repo} is not in the local cache and {_host(hub.constants.ENDPOINT)} cannot be reached")
    if not download:
        return None
    problem: Exception | None = None
    with quiet():
        for name in names:
            try:
                return Path(hub.hf_hub_download(repo, name, revision=revision or None))
            except Exception as error:
                problem = error
    raise Unavailable(f"{repo} could not be downloaded ({line(problem)})")


def from_url(url: str, download: bool) -> Path | None:
    """A weight file by its address, from torch's cache, else downloaded (None: it could be).

    Raises:
        Unavailable: not cached, and the server cannot be reached or does not have it.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.is_file():
        return file
    if not reachable(f"{urlparse(url).scheme}://{_host(url)}"):
        raise Unavailable(f"{file.name} is not in the local cache and {_host(url)} cannot be reached")
    if not download:
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(file.name)  # pyright: ignore[reportAttributeAccessIssue]
        torch.hub.download_url_to_file(url, str(file), digest and digest[1], progress=sys.stderr.isatty())
    except Exception as error:
        raise Unavailable(f"{url} could not be downloaded ({line(error)})") from error
    return file


@cache
def reachable(address: str) -> bool:
    """Whether a server answers, asked once per process and through the user's proxy."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """What hubs log and warn about is ours to say, in one line."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(f"model.checkpoint={file} is damaged or no safetensors file ({line(error)})") from error


def _pickle(file: Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(2)
    if start not in (b"PK", b"\x80\x02"):  # torch's format, and the one before it
        raise Refused(f"model.checkpoint={file} is damaged or no weight file")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a torn file
        if isinstance(error, pickle.UnpicklingError) and "weights only" in str(error).lower():
            raise Refused(
                f"model.checkpoint={file} holds more than tensors, and opening it could run code; "
                "save model.state_dict() alone"
            ) from error
        raise Refused(f"model.checkpoint={file} is damaged or no weight file ({line(error)})") from error


def _renamed(own: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, str]:
    """Which name in `found` stands for which in `own`, by the pair of prefixes that makes most meet."""

    def hits(ours: str, theirs: str) -> int:
        return sum(k.startswith(ours) and theirs + k[len(ours) :] in found for k in own)

    pairs = [(ours, theirs) for ours in _prefixes(own) for theirs in _prefixes(found)]
    ours, theirs = max(pairs, key=lambda pair: (hits(*pair), -len(pair[0]) - len(pair[1])))
    return {k: name for k in own if k.startswith(ours) and (name := theirs + k[len(ours) :]) in found}


def _short(names: list[str], most: int = 3) -> str:
    """`net.layer4.* (30), net.fc.* (2)`: tensor names by the first parts of their paths."""
    counts = Counter(_stem(name) for name in names)
    shown = [f"{stem} ({n})" if n > 1 else stem for stem, n in list(counts.items())[:most]]
    return ", ".join([*shown, *(["..."] if len(counts) > most else [])])


def _stem(name: str) -> str:
    parts = name.split(".")
    return ".".join([*parts[: min(2, len(parts) - 1)], "*"]) if len(parts) > 1 else name


def _prefixes(names: dict[str, Tensor]) -> list[str]:
    """`""`, and every dotted prefix that most names share."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for i in range(1, min(len(parts), 5)):
            prefix = ".".join(parts[:i]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return ["", *(prefix for prefix, n in counts.items() if 2 * n > len(names))]


def _host(address: str) -> str:
    return urlparse(address).netloc
