"""Automatic choices are said and kept; process-wide settings are put back."""

from __future__ import annotations

import pytest
import torch

from sftc.device import Device, Later
from sftc.errors import Refused


def test_automatic_choices_are_resolved_with_their_reasons():
    device = Device("auto")
    chosen = device.resolved()
    assert "auto" not in chosen.values()
    assert any("device" in n for n in device.notes)
    assert Device(**chosen).resolved() == chosen


def test_threads_follow_the_work_and_a_number_stays():
    small, large, asked = Device("cpu"), Device("cpu"), Device("cpu", threads=3)
    with small.active():
        small.settle(1e6)
        assert torch.get_num_threads() == 1
    with large.active():
        large.settle(1e12)
        assert torch.get_num_threads() == large.threads >= 1
    asked.settle(1e12)
    assert asked.threads == 3
    assert any("threads 1 of" in n for n in small.notes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accelerator": "cpu", "precision": "16-mixed"}, "bf16-mixed"),
        ({"accelerator": "gpu"}, "one of"),
        ({"accelerator": "cpu", "precision": "bf16"}, "did you mean 'bf16-mixed'"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(Refused, match=says):
        Device(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said():
    with pytest.raises(Refused, match="device=cpu"):
        Device("cuda")


def test_settings_and_random_state_are_put_back():
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.get_rng_state()
    with Device("cpu", threads=2).active():
        assert torch.get_num_threads() == 2
        assert torch.backends.cudnn.deterministic
        torch.rand(3)
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_reseeding_repeats_dropout():
    device, layer, x = Device("cpu"), torch.nn.Dropout(), torch.ones(64)
    device.reseed(5)
    first = layer(x)
    torch.rand(7)
    device.reseed(5)
    assert torch.equal(layer(x), first)
    device.reseed(6)
    assert not torch.equal(layer(x), first)


def test_bf16_runs_forwards_low_and_losses_high():
    device = Device("cpu", precision="bf16-mixed")
    layer = torch.nn.Linear(3, 3)
    with device.autocast():
        assert layer(torch.ones(1, 3)).dtype == torch.bfloat16
        with device.exact():
            assert layer(torch.ones(1, 3)).dtype == torch.float32


def test_later_reads_what_was_there():
    assert Later(torch.tensor([1.0, float("inf")])).read() == [1.0, float("inf")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_half_precision_skips_an_overflow_and_lowers_the_scale():
    device = Device("cuda", precision="16-mixed")
    model = device.place(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.weight.detach().clone()
    device.backward(model(torch.full((1, 2), 1e30, device="cuda")).sum() * 1e30)
    scale = device.scaler.get_scale()
    device.unscale(optimizer)
    device.step(optimizer)
    assert torch.equal(model.weight, before)
    assert device.scaler.get_scale() < scale
