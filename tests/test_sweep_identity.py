"""Job k of a sweep is bit-identical to the same command alone, whatever the jobs before it did to the process."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from problems import same
from sftc.cli import main
from sftc.store import Run

# Each value of each of these changes how the process computes; the last value varies fastest.
CHANGES = {
    "device.precision": ["bf16-mixed", "32"],
    "device.threads": ["2", "1"],
    "device.channels_last": ["true", "false"],
}
# Dropout draws from the global generator, mixup from the table; batch norm and 5 x 5 maps have a memory format.
COMMON = [
    "debug=smoke",
    "model.dropout=0.3",
    "model.batch_norm=true",
    "data=fake",
    "data.augment.mixup=0.5",
    "max_steps=4",
    "clip=0.5",
    "ema=0.9",
    "quiet=true",
]
SWEEP = [f"{key}={','.join(values)}" for key, values in CHANGES.items()]
JOBS = [
    [f"{key}={value}" for key, value in zip(CHANGES, values, strict=True)]
    for values in itertools.product(*CHANGES.values())
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "all"
    assert main(["train", "-m", *COMMON, *SWEEP, f"out={out}"]) == 0
    return out


@pytest.mark.parametrize("number", [0, 4, 7])  # the first, the first after another precision, the last
def test_a_job_of_a_sweep_is_bit_identical_to_the_command_alone(number: int, swept: Path, tmp_path: Path):
    before = torch.get_num_threads(), torch.random.get_rng_state()
    assert main(["train", *COMMON, *JOBS[number], f"out={tmp_path / 'alone'}"]) == 0
    job, alone = Run.open(swept / str(number)), Run.open(tmp_path / "alone")
    assert job.config["device"] == alone.config["device"]
    assert job.config["device"]["precision"] == JOBS[number][0].partition("=")[2]
    assert same(job, alone)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_the_comparison_sees_precision_and_jobs_are_in_order(swept: Path):
    runs = [Run.open(swept / str(i)) for i in range(len(JOBS))]
    assert not same(runs[0], runs[4])  # bf16-mixed, 32
    assert not same(runs[1], runs[5])


def test_a_job_after_one_that_failed(tmp_path: Path):
    """The first job of each precision is refused half-way, with the device already set up."""
    sweep = ["device.precision=bf16-mixed,32", "data.classes=[0,77],[1,2]", f"out={tmp_path / 'all'}"]
    assert main(["train", "-m", *COMMON, *sweep]) == 1
    alone = ["device.precision=32", "data.classes=[1,2]", f"out={tmp_path / 'alone'}"]
    assert main(["train", *COMMON, *alone]) == 0
    assert same(Run.open(tmp_path / "all" / "3"), Run.open(tmp_path / "alone"))


@pytest.mark.slow
def test_a_sweep_in_one_process_and_its_jobs_in_their_own(tmp_path: Path):
    def sftc(*args: str) -> None:
        command = [sys.executable, "-m", "sftc", *args]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr

    sftc("train", "-m", *COMMON, *SWEEP, "out=all")
    for number in range(len(JOBS)):
        job = Run.open(tmp_path / "all" / str(number))
        if number in (3, 7):
            typed = shlex.split(job.environment["command"])
            assert typed[:2] == ["sftc", "train"]
            sftc(*typed[1:], f"out=alone{number}")
            assert same(job, Run.open(tmp_path / f"alone{number}"))
