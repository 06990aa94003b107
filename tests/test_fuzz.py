"""Run folders changed at random: a command on one succeeds, or refuses it in a line. Nothing else may happen."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch

from foreign import command, finished, stopped
from mutations import RNG, mutate
from problems import After
from sftc.errors import Refused, Stopped

SECONDS = 60  # until a command counts as one that hangs; the slowest takes a tenth of a second
ADDRESSES = 3 << 30  # bytes that a command may map beyond what the process had
MEMORY = 1 << 30  # bytes that it may really use


def outcome(name: str, run: Path) -> str:
    """How a command on a folder ends, in a process of its own with little time and little memory."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reading)
            os.write(writing, _alone(name, run).encode(errors="replace")[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(child, 0)
    return text or f"killed by signal {os.waitstatus_to_exitcode(status)}"


def _alone(name: str, run: Path) -> str:
    signal.alarm(SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    os.dup2(1, 0)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of this process
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES,) * 2)
    import sftc.build.commands

    sftc.build.commands.Stopper = lambda minutes: After(12)  # type: ignore[assignment,misc]
    before = _resident()
    try:
        command(name, run)
        told = "fine"
    except (Refused, Stopped) as error:
        told = f"told: {error}"
        if "\n" in str(error).strip():
            told = f"bad: several lines: {error}"
    except BaseException:
        told = f"bad: {traceback.format_exc()[-1500:]}"
    used = _resident() - before
    return told if used < MEMORY else f"bad: {used:,} bytes used, {told}"


def _resident() -> int:
    return 1024 * next(int(x.split()[1]) for x in Path("/proc/self/status").open() if x.startswith("VmHWM:"))


def tree(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*") if but not in (p, *p.parents)}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("fuzz")
    finished(home / "done")
    stopped(home / "half")
    stopped(home / "plateau", "schedule=plateau", "optim=sgd", "model.batch_norm=true")
    stopped(home / "cycle", "schedule=onecycle", "optim=lion", "finetune=gradual", "data.augment.mixup=0.4")
    finished(home / "table", "data=diabetes", "data.classes=null", "model=mlp", "loss=huber")
    (home / "outside").mkdir()
    (home / "outside" / "secret").write_text("mine")
    return home


DOES = {"done": ("eval", "export", "train"), "table": ("eval", "train"), "half": ("train",), "plateau": ("train",)}
DOES["cycle"] = ("train", "eval")


def attempt(home: Path, seed: int) -> tuple[str, list[str]]:
    """One change to one folder, and how the commands on it end: what was changed, and what should not have been."""
    rng = RNG(seed)
    which = rng.choice(sorted(DOES))
    run = home / f"run{os.getpid()}"
    what, bad = "", []
    for name in DOES[which]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / which, run)
        again = RNG(seed + 1)
        what = f"seed {seed}: {which}: " + ", ".join(mutate(run, again) for _ in range(again.choice([1, 1, 1, 2, 3])))
        before = tree(home, run)
        end = outcome(name, run)
        if not end.startswith(("fine", "told")):
            bad.append(f"{what}: {name}: {end}")
        if tree(home, run) != before:
            bad.append(f"{what}: {name}: wrote outside of the run")
    shutil.rmtree(run, ignore_errors=True)
    return what, bad


@pytest.mark.parametrize("block", [range(50), pytest.param(range(1000, 4000), marks=pytest.mark.slow)], ids=str)
def test_a_folder_changed_at_random_is_used_or_refused(block, originals):
    bad = [line for seed in block for line in attempt(originals, seed)[1]]
    assert not bad, "\n\n".join([f"{len(bad)} of {len(block)}", *bad])


@pytest.mark.parametrize("kind", ["memory", "hang", "crash", "outside", "error"])
def test_what_should_not_happen_would_be_seen(kind, originals, monkeypatch):
    import sftc.build

    def misbehave(values):
        if kind == "memory":
            torch.zeros(MEMORY // 4 + 10**7)
        elif kind == "hang":
            signal.alarm(1)
            signal.pause()
        elif kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "outside":
            (originals / "outside" / "new").write_text("x")
        else:
            raise KeyError("x")

    monkeypatch.setattr(sftc.build, "evaluate", misbehave)
    monkeypatch.setitem(DOES, "half", ("eval",))
    monkeypatch.setattr("test_fuzz.mutate", lambda run, rng: "nothing")
    seed = next(s for s in range(100) if RNG(s).choice(sorted(DOES)) == "half")
    assert len(attempt(originals, seed)[1]) == 1
    (originals / "outside" / "new").unlink(missing_ok=True)
