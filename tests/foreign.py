"""Run folders that somebody else made: a finished one and a stopped one, and commands on them by the command line."""

from __future__ import annotations

import functools
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from problems import After, config, plain
from sftc import build
from sftc.cli import explain, main
from sftc.errors import Refused, Stopped
from sftc.store import Run

CNN = ("model=simple_cnn", "model.hidden=[8]", "data.classes=[1,3,5]", "ema=0.9")


def finished(path: Path, *overrides: str) -> Path:
    plain(path, *CNN, *overrides)
    return path


def stopped(path: Path, *overrides: str, steps: int = 7) -> Path:
    with pytest.raises(Stopped):
        plain(path, *CNN, *overrides, stop=After(steps))
    Run.open(path).mark("stopped")
    return path


def edit_yaml(run: Path, **changes: Any) -> None:
    """Set dotted keys (`model__hidden=...`) of config.yaml."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = config
        for part in parents:
            node = node[part]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def header(run: Path, edit: Any, name: str = "model.safetensors") -> None:
    """Rewrite the header of a safetensors file."""
    content = (run / name).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    text = json.dumps(edit(json.loads(content[8 : 8 + size]))).encode()
    (run / name).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def newest(run: Path) -> Path:
    return max((run / "checkpoint").glob("*.pt"))


def named(file: Path) -> Path:
    """A checkpoint under the name that its content asks for."""
    return file.rename(file.with_name(f"{file.name.rpartition('-')[0]}-{zlib.crc32(file.read_bytes()):08x}.pt"))


def edit_state(run: Path, edit: Any) -> None:
    """Change the newest checkpoint and name it by its new content; take the older one away."""
    file = newest(run)
    for other in set((run / "checkpoint").glob("*.pt")) - {file}:
        other.unlink()
    state = torch.load(file, weights_only=True)
    edit(state)
    torch.save(state, file)
    named(file)


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@functools.cache
def _composed(command: str) -> dict[str, Any]:
    needs = ["run=RUN"] if command != "train" else []
    return config(*needs, command=command)


def command(name: str, run: Path, **more: Any) -> None:
    """What `sftc NAME run=RUN` calls (`resume=RUN` for train), without composing the same config again."""
    place = {"resume": str(run), "quiet": True} if name == "train" else {"run": str(run)}
    values = {**_composed(name), **place, **more}
    if name == "train":
        build.train(values, run, [], "sftc train")
    else:
        {"eval": build.evaluate, "export": build.export}[name](values)


def sftc(capfd, name: str, run: Path, typed: bool = False, **more: Any) -> Said:
    """A command on a run folder, told as the command line tells it; only what is meant for a user may be raised.

    Args:
        typed: go through the command line itself, which takes five times as long.
    """
    if typed:
        key = "resume" if name == "train" else "run"
        code = main([name, f'{key}="{run}"', *(f"{k}={v}" for k, v in more.items())])
    else:
        code = 0
        try:
            command(name, run, **more)
        except (Refused, Stopped) as error:
            print(f"sftc {name}: {explain.line(error)}", file=sys.stderr)
            code = explain.code(error)
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
    return Said(code, said.out, said.err)
