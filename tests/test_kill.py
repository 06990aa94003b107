"""Killed at any moment and gone on with, a run ends bit-identical. Real processes, forked after the imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from killing import CASES, start, until_finished, wait
from sftc.store import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """case -> a run that nobody disturbed, and how long it took."""
    out = {}
    for case in CASES:
        path, begun = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
        assert wait(start(path, case)) == 0
        out[case] = (Run(path), time.monotonic() - begun)
    return out


def states(run):
    return {w + k: v for w in ("model", "last") for k, v in run.weights(w).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 18))])
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_and_gone_on_with_it_ends_bit_identical(case, seed, whole, tmp_path):
    expected, seconds = whole[case]
    codes = until_finished(tmp_path / "run", case, seed, kills=4, longest=seconds)
    assert codes[-1] == 0
    assert set(codes) <= {0, 137, 143, 130}
    run = Run(tmp_path / "run")
    assert run.finished
    assert same(states(run), states(expected))
    rows = [[{k: v for k, v in r.items() if k != "seconds"} for r in x.rows()] for x in (run, expected)]
    assert rows[0] == rows[1]
    assert run.result["test"] == expected.result["test"]


def test_the_comparison_can_fail(whole):
    one, two = (states(whole[case][0]) for case in ("plain", "bf16"))
    assert not same(one, two)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_cold_start_stops_with_the_signals_code_and_goes_on(number, code, tmp_path):
    """The command itself, from nothing: signalled once it trains, then the same command again."""
    sftc = [sys.executable, "-m", "sftc", "train", "resume=auto", "out=run", "epochs=40", "device=cpu", "max_steps=600"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(sftc, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "resume=" in err
    assert "Traceback" not in err
    assert Run(tmp_path / "run").status["state"] == "stopped"
    again = subprocess.run(sftc, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert Run(tmp_path / "run").result["last"]["step"] == 600


def test_two_processes_do_not_write_one_run(tmp_path):
    first = start(tmp_path / "run", "plain")
    while not (tmp_path / "run" / "config.yaml").is_file():
        time.sleep(0.01)
    assert wait(start(tmp_path / "run", "plain")) == 99  # refused
    assert wait(first) == 0
    assert Run(tmp_path / "run").finished
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
    import shutil

    pid = start(tmp_path / "run", "plain")
    while not (tmp_path / "run" / "metrics.jsonl").is_file():
        time.sleep(0.01)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert wait(pid) == 1
    assert not (tmp_path / "run").exists()
