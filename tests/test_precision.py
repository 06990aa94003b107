"""bf16 on the CPU and compiled models, through whole runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from problems import After, plain, same
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.errors import Stopped

BF16 = ("device.precision=bf16-mixed", "model=simple_cnn", "model.dropout=0.2", "model.batch_norm=true", "clip=1")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("mixed") / "run", *BF16)


def test_bf16_mixed_learns_with_weights_of_full_precision(mixed, tmp_path: Path):
    assert all(v.dtype in (torch.float32, torch.int64) for v in mixed.weights().values())
    losses = [row["train/loss"] for row in mixed.rows()]
    assert losses[-1] < losses[0]
    full = plain(tmp_path / "full", "device.precision=32", *BF16[1:])
    assert not same(mixed, full), "autocast is off"
    assert losses == pytest.approx([row["train/loss"] for row in full.rows()], rel=0.05)


@pytest.mark.parametrize("steps", [[1], [4], [2, 3]])
def test_bf16_mixed_stopped_in_mid_epoch_ends_bit_identical(steps: list[int], mixed, tmp_path: Path):
    for n in steps:
        with pytest.raises(Stopped):
            plain(tmp_path / "run", *BF16, stop=After(n))
    assert same(plain(tmp_path / "run"), mixed)


def test_a_run_in_bf16_is_reopened_in_bf16(mixed):
    lab = Bench(Device(**mixed.config["device"])).open(mixed.path)
    predictions, metrics, _ = lab.measure(lab.restore(), "test")
    assert torch.equal(predictions.scores, mixed.predictions("test")[0].scores)
    assert predictions.scores.dtype == torch.float32
    assert metrics == pytest.approx(mixed.result["test"], abs=0)


def test_channels_last_stopped_in_mid_epoch_ends_bit_identical(tmp_path: Path):
    """Sums over gradients follow the memory format: weights that come back in another one would clip otherwise."""
    settings = ("device.channels_last=true", *BF16[1:], "clip=0.1", "optim=sgd", "ema=0.9")
    whole = plain(tmp_path / "whole", *settings)
    with pytest.raises(Stopped):
        plain(tmp_path / "run", *settings, stop=After(4))
    assert same(plain(tmp_path / "run"), whole)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"), reason="no C++ compiler"
)
def test_compiled_on_the_cpu(tmp_path: Path):
    settings = ("device.compile=true", "ema=0.9")
    compiled = plain(tmp_path / "compiled", *settings)
    eager = plain(tmp_path / "eager", *settings[1:])
    assert compiled.config["device"]["compile"] is True
    for which in ("model", "last"):
        one, two = compiled.weights(which), eager.weights(which)
        assert one.keys() == two.keys(), "compiling renamed weights"
        assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)
    lab = Bench(Device("cpu")).open(compiled.path)  # without compiling
    assert lab.measure(lab.restore(), "val")[1] == pytest.approx(compiled.result["val"], abs=1e-4)
    with pytest.raises(Stopped):
        plain(tmp_path / "run", *settings, stop=After(4))
    assert same(plain(tmp_path / "run"), compiled)
