"""Runs in processes of their own that signal themselves at a chosen moment of a chosen phase, and are gone on with.

To add a strategy to the kill matrix: a line in CASES.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import masks
from clips import digits
from files import make, write_table
from problems import SMALL, config
from sftc import build, data, early, environment, models
from sftc.build import commands
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import Lab
from sftc.loop.steps import Steps
from sftc.metrics import Pieces
from sftc.store import Run, checkpoints, files, reading
from sftc.store.checkpoints import Checkpoints
from texts import write_conll, write_csv


@dataclass(frozen=True)
class Case:
    """Overrides of `sftc train` on top of SMALL and LONG; in them, {teacher} is a finished run on data=fake"""

    name: str
    overrides: Sequence[str]
    slow: bool = False  # to be killed by the slow tests only

    def __str__(self) -> str:
        return self.name


LONG = ("epochs=3", "checkpoint.steps=2")  # three steps an epoch
DROPS = ("model.dropout=0.3", "model.batch_norm=true")
FOLDER = ("data=image_folder", "data.root={pictures}", "data.cache=none", "data.augment.flip=0.5", "device.threads=1")
SOUNDS = ("data=audio_folder", "data.root={tones}", "batch_size=8", "data.augment.shift=0.01", "data.augment.noise=0.1")
CASES = (
    Case("dropout", DROPS),
    Case("pieces, average, mixup", ("data=fake", "data.augment.mixup=0.4", "micro_batch_size=11", "ema=0.9", *DROPS)),
    Case("bf16, clipped", ("device.precision=bf16-mixed", "clip=0.1", *DROPS)),
    Case("streaming", (*FOLDER, "data.workers=0", *DROPS), slow=True),
    Case("streaming, workers", (*FOLDER, "data.workers=2", "epochs=2")),
    Case("pixels", ("data=segmentation_folder", "data.root={masks}", "data.augment.flip=0.5", "model=fcn")),
    Case("texts", ("data=text_csv", "data.root={texts}", "model=text_cnn", "model.min_count=1", "model.dim=8")),
    Case(
        "words", ("data=conll", "data.root={words}", "model=bilstm", "model.min_count=1", "model.hidden=8"), slow=True
    ),
    Case("kd live", ("strategy=kd", "model@strategy.teacher=mlp", "strategy.teacher_outputs=live", *DROPS)),
    Case("kd cached", ("data=fake", "strategy=kd", "strategy.teachers=[{teacher}]", "strategy.teacher_outputs=cached")),
    Case("kd mutual", ("strategy=kd", "strategy.peers=2", "strategy.teacher_epochs=1", *DROPS)),
    Case(
        "leader", ("strategy=leader", "strategy.keep=1", "strategy.followers=[{{alpha:0.5}},{{tap:net.fc2}}]", *DROPS)
    ),
    Case("sounds", (*SOUNDS, "data.cache=none", "data.workers=0", "model=audio_cnn", "model.channels=[4]")),
    Case("ensemble", ("strategy=ensemble", "strategy.n=2", "strategy.lockstep=true", *DROPS)),
    Case("table, quantiles", ("data=tabular", "data.root={table}", "data.target=value", "loss=quantile", *DROPS)),
    Case(
        "from weights",
        ("data=fake", "data.outputs=5", "model.checkpoint={teacher}", "model.hidden=[24]", "penalty.l2_sp=0.01"),
    ),
    Case("ensemble, stacked", ("strategy=ensemble", "strategy.n=3", "strategy.lockstep=vmap", DROPS[1]), slow=True),
    Case("ensemble, one after another", ("strategy=ensemble", "strategy.n=5", "epochs=1", *DROPS), slow=True),
)

lab, loop = importlib.import_module("sftc.lab.lab"), importlib.import_module("sftc.loop.fit")
# Each phase lasts while one of its functions runs.
PHASES: dict[str, list[tuple[Any, str]]] = {
    "start": [(Bench, "start"), (Bench, "resume"), (lab, "assemble"), (Checkpoints, "read")],
    "step": [(Steps, "_step")],
    "evaluation": [(Lab, "_score"), (loop, "_close_epoch")],
    "checkpoint": [(Checkpoints, "write")],
    "end": [(Lab, "keep")],
}
# Within a phase, each of these is two moments: before it and after it.
INSIDE: list[tuple[Any, str]] = [
    *((data, "build"), (models, "build"), (environment, "describe"), (torch, "load"), (Run, "log")),
    *((Device, "backward"), (Device, "step"), (Pieces, "hold"), (Path, "unlink"), (os, "fsync"), (os, "replace")),
]
ENDS = {signal.SIGKILL: 137, signal.SIGTERM: 143, signal.SIGINT: 130}
WAYS = [(signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)]


@dataclass
class Aim:
    """Signals its own process group at moment number `at` of a phase. Without a number it counts them all."""

    phase: str = ""
    at: int = 0
    ways: Sequence[int] = ()
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))

    def take(self) -> None:
        """Wrap the functions of this process."""
        self.depth, self.process = dict.fromkeys(PHASES, 0), os.getpid()
        for phase, scopes in PHASES.items():
            for owner, name in scopes:
                setattr(owner, name, self._scope(phase, getattr(owner, name)))
        for owner, name in INSIDE:
            setattr(owner, name, self._around(getattr(owner, name)))
        files.write_bytes = self._torn  # pyright: ignore
        files.appended = self._torn_line  # pyright: ignore
        checkpoints._Summing.write = self._torn_write(checkpoints._Summing.write)  # pyright: ignore
        # A start or an end that goes on has fewer moments than a whole one. These come last.
        Steps.train = self._at_the_latest("start", Steps.train)  # pyright: ignore
        commands._tell = self._at_the_latest("end", commands._tell)

    def moment(self) -> None:
        for phase, deep in self.depth.items():
            if deep and os.getpid() == self.process:  # not in a data worker
                self.seen[phase] += 1
                if phase == self.phase and self.seen[phase] == self.at:
                    self.shoot()

    def shoot(self) -> None:
        self.phase = ""
        for number in self.ways:
            os.killpg(0, number)  # as a terminal and a batch queue do it: the data workers, too
            time.sleep(0)

    def _scope(self, phase: str, inner: Callable) -> Callable:
        def wrapped(*args, **more):
            self.depth[phase] += 1
            try:
                self.moment()
                out = inner(*args, **more)
                self.moment()
                return out
            finally:
                self.depth[phase] -= 1

        return wrapped

    def _around(self, inner: Callable) -> Callable:
        def wrapped(*args, **more):
            self.moment()
            out = inner(*args, **more)
            self.moment()
            return out

        return wrapped

    def _at_the_latest(self, phase: str, inner: Callable) -> Callable:
        def wrapped(*args, **more):
            if self.phase == "start" == phase:
                self.shoot()
            out = inner(*args, **more)
            if self.phase == "end" == phase:
                self.shoot()
            return out

        return wrapped

    def _torn(self, path: Path, content: bytes) -> None:
        with files.replacing(path) as temp, temp.open("wb", buffering=0) as f:
            f.write(content[: len(content) // 2])
            self.moment()
            f.write(content[len(content) // 2 :])

    def _torn_line(self, path: Path, text: str) -> None:
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):
            with path.open("a") as f:
                f.write(half)
            self.moment()

    def _torn_write(self, inner: Callable) -> Callable:
        def write(out, content) -> int:
            held = memoryview(content).cast("B") if len(content) else memoryview(b"")
            done = inner(out, held[: len(held) // 2])
            out.file.flush()
            self.moment()
            return done + inner(out, held[len(held) // 2 :])

        return write


@cache
def _made() -> dict[str, str]:
    """What cases refer to; making it imports all that training imports lazily, once for all forked processes."""
    home = Path(tempfile.mkdtemp(prefix="sftc-kill-"))
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    pictures = make(home / "pets", n=30, size=(10, 10))
    table = write_table(home / "table.csv", 150)
    cfg = config(*SMALL, "data=fake", "model.hidden=[24]", "ema=0.9", "device.precision=bf16-mixed")
    build.check(cfg)
    build.train(cfg, home / "teacher", [], "sftc train")
    texts, words = write_csv(home / "texts"), write_conll(home / "words")
    own = {"pictures": pictures, "teacher": home / "teacher", "table": table, "texts": texts, "words": words}
    own["masks"] = masks.write(home / "scenes", n=24)
    own["tones"] = digits(home / "tones", n=15)
    return {name: str(path) for name, path in own.items()}


@cache
def _config(case: Case) -> dict[str, Any]:
    return config(*SMALL, *LONG, *_overrides(case))


def _overrides(case: Case) -> list[str]:
    made = _made()
    return [o.format(**made) if "{" in o else o for o in case.overrides]


def start(out: Path, case: Case, aim: Aim | None = None) -> int:
    """Fork a process that trains in `out`, or goes on there; its exit status is the command's."""
    overrides, cfg = _overrides(case), _config(case) | {"resume": "auto", "out": str(out)}
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    said = os.open(out.parent / f"{out.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 99
    try:
        early.listen()
        if aim is not None:
            aim.take()
        build.check(cfg)
        build.train(cfg, out, overrides, "sftc train ...")
        code = 0
    except Stopped as e:
        code = e.code
    except Refused as e:
        os.write(2, f"{e}\n".encode())
        code = 2
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        if aim is not None and not aim.at:
            (out.parent / "moments").write_text(repr(aim.seen))
        os._exit(code)


def wait(pid: int) -> int:
    """Exit status as a shell shows it."""
    status = os.waitpid(pid, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@dataclass
class Whole:
    """A run that nobody disturbed: what it left, the moments of each phase, and how long it took."""

    path: Path
    moments: dict[str, int]
    seconds: float


def whole(folder: Path, case: Case) -> Whole:
    _config(case)
    begun = time.monotonic()
    assert wait(start(folder / "run", case, Aim())) == 0
    return Whole(folder / "run", eval((folder / "moments").read_text()), time.monotonic() - begun)


def plan(seed: int, times: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    """Phases to be killed in, and how. An end comes last: after it there is no step to be killed in."""
    ways = [WAYS[(seed + i) % len(WAYS)] for i in range(4 * times + 2)]  # four seeds: every phase in every way
    fit = list(zip(["start", "step", "evaluation", "checkpoint"] * times, ways, strict=False))
    random.Random(seed).shuffle(fit)
    return [*fit, ("end", ways[-2]), ("end", ways[-1])]


def killed_as_planned(out: Path, case: Case, whole: Whole, seed: int, times: int = 1) -> Iterator[tuple[int, int]]:
    """(expected, actual) exit status of each start: killed as `plan` says, then left alone until it ends.

    Each kill comes within its share of the whole, so there is something left for the ones after it.
    """
    draw, kills = random.Random(seed), plan(seed, times)
    shares = {"start": 1, "end": 2}  # after the first half of an end, the run is not finished yet
    for i, (phase, ways) in enumerate(kills):
        last = i == len(kills) - 1
        most = whole.moments[phase] // (1 if last else shares.get(phase, len(kills)))
        yield ENDS[ways[-1]], wait(start(out, case, Aim(phase, draw.randint(1, max(1, most)), ways)))
    yield 0, wait(start(out, case))


def killed_at_random(out: Path, case: Case, seed: int, kills: int, longest: float) -> list[int]:
    """Kill `kills` times at moments drawn from `seed`, then let it end. Returns every exit status."""
    draw, codes = random.Random(seed), []
    for _ in range(kills):
        pid = start(out, case)
        time.sleep(draw.uniform(0, longest))
        os.kill(pid, draw.choice(list(ENDS)))
        codes.append(wait(pid))
        if Run(out).finished:
            break
    codes.append(wait(start(out, case)))
    return codes


def left(path: Path) -> dict[str, Any]:
    """All that a run and its members leave, but times: weights, predictions, rows, metrics, result; names of files."""
    out: dict[str, Any] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock"):
        name = str(file.relative_to(path))
        out[name] = None
        if file.suffix == ".safetensors":
            out |= {f"{name}:{k}": v for k, v in reading.read_tensors(file).items()}
        elif file.name == "metrics.jsonl":
            out[name] = _timeless(Run(file.parent).rows())
        elif file.name == "result.json":
            text = file.read_text().replace(str(path.parent), "")  # where the runs lie that it names
            out[name] = _timeless(json.loads(text))
    return out


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "ms_per_row")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def differences(a: Path, b: Path) -> list[str]:
    """Names of what two runs do not have in common, to the bit."""
    one, two = left(a), left(b)
    both = one.keys() & two.keys()
    return sorted((one.keys() ^ two.keys()) | {k for k in both if not _equal(one[k], two[k])})


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
