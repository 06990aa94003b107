"""Killed at any moment of any phase and gone on with, a run ends bit-identical. Real processes, forked after imports.

By hand: `pytest tests/test_kill.py -m slow` kills about a thousand times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from killing import (
    CASES,
    PHASES,
    WAYS,
    Aim,
    Case,
    Whole,
    differences,
    killed_as_planned,
    killed_at_random,
    plan,
    start,
    wait,
    whole,
)
from sftc.store import Run

PLAIN = CASES[0]
MATRIX = [
    pytest.param(case, seed, id=f"{case}-{seed}", marks=[pytest.mark.slow] if seed or case.slow else [])
    for case in CASES
    for seed in range(20)
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """case -> a run of it that nobody disturbed."""
    made: dict[Case, Whole] = {}

    def get(case: Case) -> Whole:
        if case not in made:
            made[case] = whole(tmp_path_factory.mktemp("whole"), case)
        return made[case]

    return get


@pytest.mark.parametrize(("case", "seed"), MATRIX)
def test_killed_in_every_phase_and_gone_on_with_it_ends_bit_identical(case, seed, wholes, tmp_path):
    out, expected = tmp_path / "run", wholes(case)
    for number, (code, got) in enumerate(killed_as_planned(out, case, expected, seed + CASES.index(case))):
        assert got == code, f"start {number}: {(tmp_path / 'run.txt').read_text()}"
    assert Run(out).finished
    assert differences(expected.path, out) == []


@pytest.mark.parametrize(
    "phase", ["step", *(pytest.param(p, marks=pytest.mark.slow) for p in ("evaluation", "checkpoint", "end"))]
)
@pytest.mark.parametrize("share", [0.5, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.43, 0.57))])
def test_killed_in_the_third_of_five_members_the_first_two_are_not_trained_again(phase, share, wholes, tmp_path):
    """kill -9 at a moment of its own share: with five equal members, the third has those from 0.4 to 0.6."""
    out, case = tmp_path / "run", CASES[-1]
    expected = wholes(case)
    at = round(share * expected.moments[phase])
    assert wait(start(out, case, Aim(phase, at, [signal.SIGKILL]))) == 137
    members = [out / "members" / f"member{i}" for i in range(5)]
    assert [Run(m).finished for m in members] == [True, True, False, False, False]
    assert [(m / "checkpoint").exists() or bool(Run(m).rows()) for m in members[3:]] == [False, False]
    files = [f for m in members[:2] for f in m.rglob("*") if f.is_file() and f.name != ".lock"]
    before = {f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in files}
    assert len(before) > 10
    assert wait(start(out, case)) == 0
    assert {f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in files} == before
    assert differences(expected.path, out) == []


def test_the_plans_kill_every_phase_in_every_way():
    done = Counter(step for n, case in enumerate(CASES) if not case.slow for step in plan(n))
    assert done.keys() >= {(phase, way) for phase in PHASES for way in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_random_and_gone_on_with_it_ends_bit_identical(case, seed, wholes, tmp_path):
    expected = wholes(case)
    codes = killed_at_random(tmp_path / "run", case, seed, kills=4, longest=expected.seconds)
    assert codes[-1] == 0
    assert set(codes) <= {0, 137, 143, 130}
    assert differences(expected.path, tmp_path / "run") == []


@pytest.mark.parametrize("spoiled", ["nothing", "step", "moment", "weight"])
def test_the_comparison_sees_what_a_checkpoint_lost(spoiled, wholes, tmp_path):
    """A killed run whose stored state is not what it was ends otherwise: so the tests above can fail."""
    out = tmp_path / "run"
    assert wait(start(out, PLAIN, Aim("step", 26, [signal.SIGKILL]))) == 137
    state = Run(out).checkpoints.read()
    assert state is not None
    moments = next(iter(state["trainees"][0]["optimizer"]["state"].values()))
    if spoiled == "step":
        state["step"] += 1  # dropout and the order of rows follow it
        state["trainees"][0]["schedule"]["updates"] += 1  # else it is seen before anything is trained
    elif spoiled == "moment":
        moments["exp_avg"] += 1e-3
    elif spoiled == "weight":
        next(v for k, v in state["objective"].items() if k.endswith("weight"))[0, 0] += 1e-6
    Run(out).checkpoints.drop()
    Run(out).checkpoints.write(state)
    assert wait(start(out, PLAIN)) == 0
    found = differences(wholes(PLAIN).path, out)
    assert (found == []) == (spoiled == "nothing")
    if spoiled != "nothing":
        assert any(name.startswith("last.safetensors:") for name in found)


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "sftc", "train", "device=cpu", "epochs=60", "model=mlp", *more]


def begun(folder: Path, *more: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*more), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stopped(process: subprocess.Popen, number: int) -> str:
    """Signal it, see that it ends with the signal's code, and return its stderr: one line."""
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert err.count("\n") == 1, err
    return err


def test_a_cold_start_is_stopped_while_it_imports_torch(tmp_path):
    process = begun(tmp_path)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.005)
    assert "SIGINT" in stopped(process, signal.SIGINT)
    assert os.listdir(tmp_path) == []


def test_a_cold_start_is_stopped_once_it_trains_and_goes_on(tmp_path):
    process = begun(tmp_path, "resume=auto", "out=run", "max_steps=600")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3"):
            break
    assert "resume=run goes on" in stopped(process, signal.SIGTERM)
    run = Run(tmp_path / "run")
    assert run.status["state"] == "stopped"
    assert wait(start(run.path, Case("the same command", tuple(run.environment["overrides"])))) == 0
    assert run.result["last"]["step"] == 600


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2, 2.5, 3, 4, 5, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cold_start_is_stopped_at_any_moment(number, delay, tmp_path):
    process = begun(tmp_path, "epochs=5000")
    time.sleep(delay)
    stopped(process, number)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a compiler on a CPU")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_is_stopped_while_its_model_is_compiled(number, tmp_path):
    process = begun(tmp_path, "out=run", "device.compile=true")
    while not (tmp_path / "run" / "config.yaml").is_file():
        time.sleep(0.01)
    time.sleep(2)
    stopped(process, number)
    assert Run(tmp_path / "run").rows() == []


def test_two_processes_do_not_write_one_run(tmp_path):
    first = start(tmp_path / "run", PLAIN, Aim("evaluation", 1, [signal.SIGSTOP]))
    assert os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    assert wait(start(tmp_path / "run", PLAIN)) == 2
    assert "is being written by process" in (tmp_path / "run.txt").read_text()
    os.kill(first, signal.SIGCONT)
    assert wait(first) == 0
    assert Run(tmp_path / "run").finished
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
    first = start(tmp_path / "run", PLAIN, Aim("evaluation", 1, [signal.SIGSTOP]))
    assert os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    os.kill(first, signal.SIGCONT)
    assert wait(first) == 1
    assert not (tmp_path / "run").exists()
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "elsewhere" / ".lock").unlink()
    assert wait(start(tmp_path / "elsewhere", PLAIN)) == 0  # moved, it is a run like any other
