"""Disks that are full, read-only or gone, and clocks that are wrong: one line, nothing lost, and the run can go on.

Real files in real processes. A full disk is a limit on the size of files, set in the child at the moment of the write.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from problems import SMALL, After, config, lab, plain, same
from sftc import build
from sftc.cli import folder as folders
from sftc.errors import Refused, Stopped
from sftc.loop import Care
from sftc.stop import Stopper
from sftc.store import Run
from sftc.store.checkpoints import Checkpoints
from sftc.store.lock import locked

OPTIONS = ("epochs=3", "model.dropout=0.1", "ema=0.9", "checkpoint.steps=2")
NOBODY = 65534


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return Run(out)


@pytest.fixture
def home():
    """A folder that everybody may enter, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="sftc-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def train(out: Path, **more) -> None:
    overrides = [*SMALL, *OPTIONS]
    build.train(config(*overrides) | {"out": str(out)} | more, out, overrides, "sftc train ...")


def child(work: Callable[[], object]) -> tuple[int, str]:
    """Exit status and message of `work` in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, text = 70, ""
        try:
            work()
            code = 0
        except Stopped as e:
            code, text = e.code, str(e)
        except Refused as e:
            code, text = 2, str(e)
        except BaseException as e:
            text = f"{type(e).__name__}: {e}"
        finally:
            os.write(write, text.encode()[:4000])
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        text = f.read().decode()
    status = os.waitpid(pid, 0)[1]
    return (128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), text


def before(owner: type, name: str, call: int, trouble: Callable[[Path], object]) -> None:
    """In a child: make `trouble` for a run just before the numbered call of a method that writes."""
    method, calls = getattr(owner, name), [0]

    def called(self, *args, **more):
        calls[0] += 1
        if calls[0] == call:
            trouble(self.folder.parent if isinstance(self, Checkpoints) else self.path)
        return method(self, *args, **more)

    setattr(owner, name, called)


def full(size: int) -> Callable[[Path], None]:
    """No file grows beyond `size` bytes, or a log by more than these."""

    def limit(run: Path) -> None:
        log = run / "metrics.jsonl"
        most = log.stat().st_size + size if size < 100 and log.exists() else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    return limit


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


WRITES = {
    "the first checkpoint": (Checkpoints, "write", 1, 20_000),
    "a later checkpoint": (Checkpoints, "write", 4, 20_000),
    "metrics": (Run, "log", 2, 20),
    "the best weights": (Run, "write_weights", 1, 20_000),
    "the last weights": (Run, "write_weights", 2, 20_000),
    "predictions": (Run, "write_predictions", 2, 500),
    "the result": (Run, "write_result", 1, 100),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_disk_that_is_full_loses_nothing_and_the_run_can_go_on(what, whole, tmp_path):
    owner, name, call, size = WRITES[what]
    out, seen = tmp_path / "run", tmp_path / "seen"

    def work():
        before(owner, name, call, lambda run: (shutil.copytree(run, seen), full(size)(run)))
        train(out)

    code, text = child(work)
    assert (code, text.count("\n")) == (1, 0), text
    assert text.startswith(f"cannot write {out}")
    assert "File too large" in text
    assert str(out) in text.split("run folder")[-1]
    run, old = Run(out), files(seen)
    assert not list(out.rglob(".*.tmp"))
    for path, content in old.items():  # what was there is there, and a log has only grown
        if path not in ("status.json", ".lock"):
            assert (out / path).read_bytes().startswith(content), path
    damaged: list[str] = []
    state = run.checkpoints.read(damaged.append)
    assert not damaged
    assert (state is None) == (what == "the first checkpoint")
    assert child(lambda: train(out, resume=str(out))) == (0, "")
    assert same(run, whole)
    assert run.result["test"] == whole.result["test"]
    assert not (out / "checkpoint").exists()


def test_where_nothing_can_be_written_it_is_one_line(home):
    """As somebody who is not root, whom no permission would stop."""
    out = home / "run"
    assert child(lambda: plain(out, *OPTIONS, stop=After(5)))[0] == 143
    inside = files(out)
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.getuid() == 0 and child(lambda: (os.setuid(NOBODY), (home / "x").write_text("x")))[0] == 0:
        pytest.skip("another user may write anywhere here")

    def somebody(work):
        return child(lambda: ((os.setgid(NOBODY), os.setuid(NOBODY)) if os.getuid() == 0 else None, work()))

    code, text = somebody(lambda: train(out, resume=str(out)))
    assert (code, text) == (1, f"cannot write {out}/.lock: Permission denied; what was saved before is whole")
    home.chmod(0o555)
    code, text = somebody(lambda: train(home / "new"))
    assert (code, text) == (2, f"out={home}/new cannot be made: Permission denied")
    home.chmod(0o755)
    assert files(out) == inside
    for path in (out, *out.rglob("*")):
        path.chmod(0o755)


@pytest.mark.parametrize("instead", ["nothing", "a file", "another folder"])
def test_a_run_whose_folder_is_taken_away_writes_nowhere_else(instead, whole, tmp_path):
    out, away = tmp_path / "run", tmp_path / "away"

    def trouble(run: Path) -> None:
        run.rename(away)
        if instead == "a file":
            run.write_text("mine")
        elif instead == "another folder":
            run.mkdir(mode=0o755)
            (run / "checkpoint").write_text("mine")

    code, text = child(lambda: (before(Checkpoints, "write", 3, trouble), train(out)))
    assert (code, text.count("\n")) == (1, 0), text
    assert text.startswith(f"cannot write {out}")
    if instead == "nothing":
        assert not out.exists()
    elif instead == "a file":
        assert out.read_text() == "mine"
    else:
        assert (out / "checkpoint").read_text() == "mine"
    assert child(lambda: train(away, resume=str(away))) == (0, "")
    assert same(Run(away), whole)


def test_no_clock_decides_which_checkpoint_is_the_newest(whole, tmp_path, monkeypatch):
    hour = iter(range(10_000, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hour))  # every look is an hour earlier
    out, seen = tmp_path / "run", []
    for _ in range(6):
        with pytest.raises(Stopped):
            plain(out, *OPTIONS, stop=After(2))  # in mid-epoch, in validation, and once more at the same step after it
        for i, file in enumerate(Checkpoints(out / "checkpoint").files()):
            os.utime(file, (1e9 + i, 1e9 + i))  # the newest looks oldest
        state = Run(out).checkpoints.read()
        assert state is not None
        seen.append((state["step"], state["epoch"]))
    assert seen == sorted(set(seen)), "every sitting begins where the last one ended"
    assert len({step for step, _ in seen}) < len(seen)
    assert same(plain(out), whole)


def test_minutes_are_counted_by_a_clock_that_nobody_sets(monkeypatch):
    care, stop = Care(epochs=None, minutes=1e-9), Stopper(max_minutes=60)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # set back to 1970
    assert care.due(1)
    monkeypatch.setattr(time, "time", lambda: 1e11)  # and far ahead
    assert stop() is None
    assert not Care(epochs=None, minutes=60).due(1)


def test_an_hour_that_comes_twice_gives_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form, *_: {"%Y-%m-%d": "2026-10-25"}.get(form, "023000"))
    names = []
    for _ in range(2):
        with folders.reserved("x") as path:
            (path / "config.yaml").write_text("")
            names.append(path.name)
    assert names == ["023000-x", "023000-x-2"]


def test_metrics_are_told_once_when_a_fit_starts_over_or_ends_an_epoch_again(whole, tmp_path):
    """Killed between the line of an epoch and its checkpoint."""
    out = tmp_path / "run"
    die = lambda run: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    # checkpoint.steps=2 of 3 steps an epoch: the fourth is written at step 6, after the second line
    assert child(lambda: (before(Checkpoints, "write", 4, die), train(out)))[0] == 137
    assert len(Run(out).rows()) == 2
    with (out / "metrics.jsonl").open("a") as f:
        f.write('{"epoch": 2, "st')
    (out / ".model.safetensors.1.0a1b2c.tmp").write_text("half")
    assert child(lambda: train(out, resume=str(out))) == (0, "")
    assert same(Run(out), whole)
    assert not list(out.rglob(".*"))
    shutil.rmtree(out)
    assert child(lambda: (before(Checkpoints, "write", 2, die), train(out)))[0] == 137
    shutil.rmtree(out / "checkpoint")
    assert child(lambda: train(out, resume=str(out))) == (0, "")
    assert same(Run(out), whole)
    assert not (out / "checkpoint").exists()


def test_a_torn_newest_does_not_cost_the_best_weights(tmp_path):
    """The best comes from an early epoch; the older of the two states must bring it along, to the bit."""
    options = ("epochs=6", "optim=sgd", "optim.lr=3", "schedule=constant", "ema=null")
    expected = plain(tmp_path / "whole", *options)
    best = expected.result["best"]["epoch"]
    assert best < 3, "a rate this high should not go on getting better"
    home = lab(tmp_path / "run", *options, stop=After(14))  # of 3 steps an epoch: in the fifth
    with pytest.raises(Stopped):
        home.fit(home.model())
    home.run.unlock()
    newest, older = home.run.checkpoints.files()
    states = [torch.load(p, weights_only=True)["trainees"][0] for p in (newest, older)]
    assert all(s["best"]["epoch"] == best for s in states)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        Checkpoints(newest.parent).read()
    assert same(plain(tmp_path / "run"), expected)


def hold(folder: Path, note: bytes = b"") -> int:
    """A process that holds the lock until it is killed; with another note in it, another machine's for us."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(folder):
            if note:
                file = os.open(folder / ".lock", os.O_WRONLY | os.O_TRUNC)
                os.write(file, note)  # and left open: closing it would let the lock go
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_lock_is_held_by_the_living_alone(tmp_path):
    pid = hold(tmp_path)
    try:
        with pytest.raises(Refused, match=rf"written by process {pid} on .*; wait for it, or choose another out=$"):
            locked(tmp_path).__enter__()
    finally:
        end(pid)
    assert (tmp_path / ".lock").read_text().startswith(f"process {pid} on ")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_another_machine_says_what_to_do(tmp_path):
    pid = hold(tmp_path, b"process 5 on elsewhere")
    try:
        with pytest.raises(Refused, match=r"process 5 on elsewhere; .*if nothing runs over there .*remove .*\.lock"):
            locked(tmp_path).__enter__()
    finally:
        end(pid)
    with locked(tmp_path):
        pass


def test_status_says_why(tmp_path):
    out = tmp_path / "run"
    code, text = child(lambda: (before(Checkpoints, "write", 2, full(20_000)), train(out)))
    assert code == 1
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"] in text
