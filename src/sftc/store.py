"""The run folder: the only file that writes the state of a run to disk, and the only one that believes what it reads.

Every write is temp + fsync + rename, so a kill leaves the old file or the new one. Weights are safetensors, training
states `weights_only` pickles of plain types, configs plain YAML: opening somebody's run executes nothing from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sftc.errors import Refused
from sftc.types import Predictions

FORMAT = 1  # of the folder; a newer one is refused


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
    try:
        yield temp
        with temp.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(temp, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with _replacing(path) as temp:
        temp.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Safetensors. Tied weights are stored once each: the format refuses shared memory."""
    plain = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    write_bytes(path, save(plain, dict(meta or {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises Refused: the file is missing, or not whole."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise Refused(f"{path} does not exist") from None
    except (SafetensorError, OSError) as e:
        raise Refused(f"{path} is not a whole safetensors file ({e})") from None


def read_meta(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise Refused(f"{path} is not a whole safetensors file ({e})") from None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors: says which weights a prediction came from."""
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
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


class Run:
    """One folder, one training or fusion: what teachers, leaders, members and inputs of fuse are named by."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> Run:
        """A new run. Raises Refused: the folder exists and holds anything at all."""
        run = cls(path)
        if run.path.is_file():
            raise Refused(f"out={run.path} is a file; choose a folder that does not exist yet")
        if run.path.is_dir() and any(run.path.iterdir()):
            way = f"sftc train resume={run.path}" if (run.path / "config.yaml").is_file() else "another out="
            raise Refused(f"out={run.path} is not empty and is never overwritten; use {way}")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise Refused(f"out={run.path} cannot be made: {e.strerror}") from None
        run.write_config(config)
        run.mark("running")
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run. Raises Refused: there is none."""
        run = cls(path)
        if not run.path.is_dir():
            raise Refused(f"run {run.path} does not exist{_neighbour(run.path)}")
        if not (run.path / "config.yaml").is_file():
            raise Refused(f"{run.path} is not a run folder: it has no config.yaml{_inside(run.path)}")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, plain types. Raises Refused: it is damaged, newer than this version, or interpolates."""
        path = self.path / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise Refused(f"{path} cannot be read as YAML ({str(e).splitlines()[0]})") from None
        if not isinstance(config, dict):
            raise Refused(f"{path} is not a config: it holds no keys")
        if config.pop("format", FORMAT) != FORMAT:
            raise Refused(f"{path} was written by another version of sftc; this one reads format {FORMAT}")
        if "${" in str(config):
            raise Refused(f"{path} holds an interpolation; a stored config is plain, so it is not trusted")
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump({"format": FORMAT, **plain(config)}, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    @property
    def status(self) -> dict[str, Any]:
        return self._json("status.json") or {"state": "unknown"}

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def mark(self, state: str, **more: Any) -> None:
        """status.json: running, finished, stopped or failed; when; and why."""
        write_text(
            self.path / "status.json",
            json.dumps({"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **plain(more)}, indent=2),
        )

    @property
    def result(self) -> dict[str, Any]:
        """result.json of a finished run. Raises Refused: it has none."""
        result = self._json("result.json")
        if result is None:
            state = self.status.get("state")
            raise Refused(f"run {self.path} has no result yet ({state}); finish it: sftc train resume={self.path}")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(plain(result), indent=2))

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json, with `command` and `notes` at least."""
        return {"command": "", "notes": [], **(self._json("environment.json") or {})}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_text(self.path / name, json.dumps(plain(content), indent=2))

    def write_page(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise Refused(f"{path} cannot be read as JSON ({e})") from None
        if not isinstance(value, dict):
            raise Refused(f"{path} should hold an object of keys and values")
        return value

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(plain(row)) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl; a line torn by a kill is left out."""
        path = self.path / "metrics.jsonl"
        out = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                out.append(json.loads(line))
        return out

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that come after `step`: a resumed run writes them again."""
        if (self.path / "metrics.jsonl").is_file():
            kept = [r for r in self.rows() if r.get("step", 0) <= step]
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))

    def write_weights(self, name: str, state: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
        """`name` is model (best on validation) or last."""
        write_tensors(self.path / f"{name}.safetensors", state, meta)

    def weights(self, name: str = "model") -> dict[str, Tensor]:
        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            state = self.status.get("state")
            raise Refused(f"run {self.path} has no {path.name} ({state}); finish it: sftc train resume={self.path}")
        return read_tensors(path)

    def write_predictions(self, split: str, p: Predictions, meta: Mapping[str, str]) -> None:
        """preds/<split>.safetensors with the model's hash and the data's fingerprint."""
        tensors = {"scores": p.scores, "target": p.target, "row": p.row}
        write_tensors(self.path / "preds" / f"{split}.safetensors", tensors, meta)

    def predictions(self, split: str) -> tuple[Predictions, dict[str, str]]:
        path = self.path / "preds" / f"{split}.safetensors"
        if not path.is_file():
            raise Refused(f"run {self.path} holds no predictions of {split}: sftc eval run={self.path} split={split}")
        t = read_tensors(path)
        if not {"scores", "target", "row"} <= t.keys():
            raise Refused(f"{path} holds no predictions")
        return Predictions(t["scores"], t["target"], t["row"]), read_meta(path)

    def write_rows(self, rows: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
        """rows.safetensors: source row numbers of every split, and the data's fingerprint."""
        write_tensors(self.path / "rows.safetensors", rows, meta)

    def rows_of(self, split: str) -> Tensor | None:
        path = self.path / "rows.safetensors"
        return read_tensors(path).get(split) if path.is_file() else None

    def rows_meta(self) -> dict[str, str]:
        path = self.path / "rows.safetensors"
        return read_meta(path) if path.is_file() else {}

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """checkpoint/last.pt: plain types and tensors only, so that `weights_only` reads it."""
        with _replacing(self.path / "checkpoint" / "last.pt") as temp:
            torch.save(dict(state), temp)

    def checkpoint(self) -> dict[str, Any] | None:
        path = self.path / "checkpoint" / "last.pt"
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises whatever the damaged bytes led to
            raise Refused(f"{path} cannot be read back ({str(e).splitlines()[0]})") from None

    def drop_checkpoint(self) -> None:
        """A finished run keeps its weights, not its optimizer."""
        (self.path / "checkpoint" / "last.pt").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.path / "checkpoint").rmdir()

    def member(self, name: str) -> Path:
        return self.path / "members" / name


def _neighbour(path: Path) -> str:
    from sftc.errors import nearest

    parent = path.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    return nearest(path.name, names) or f" (looked in {parent.resolve()})"


def _inside(path: Path) -> str:
    """A sweep or a day of runs was named instead of one run: name one."""
    runs = sorted(p.parent for p in [*path.glob("*/config.yaml"), *path.glob("*/*/config.yaml")])
    return f"; did you mean {runs[0]}?" if runs else ""
