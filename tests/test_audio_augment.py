"""Augmentation of sounds: `draw` is a pure table, `apply` a pure function; each change against a plain reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftc.data import random
from sftc.data.audio_augment import SoundAugment, white
from sftc.errors import Refused

ROWS = np.arange(50)
RATE = 8000
ALL = {"shift": 0.01, "gain": 6.0, "noise": 0.3, "time_mask": 0.4, "freq_mask": 0.5}


def sounds(n: int = 50, length: int = 1000) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(-8000, 8000, (n, 1, length), dtype=torch.int16, generator=draw)


def run(augment: SoundAugment, x: torch.Tensor, view: int = 0):
    draw = augment.draw(0, ROWS[: len(x)], np.full(len(x), view), x.shape[1:])
    out, lam = augment.apply(x, draw)
    assert lam is None
    assert out.dtype == torch.float32
    return draw.tensors, out


def test_a_shift_hears_another_part():
    augment = SoundAugment(shift=0.01, rate=RATE)
    x = sounds()
    t, out = run(augment, x)
    assert out.shape == (50, 1, 1000 - 160)
    for i, start in enumerate(t["start"].tolist()):
        assert torch.equal(out[i], x[i, :, start : start + 840] / 32768)
    many = np.arange(20_000)
    starts = augment.draw(0, many, np.zeros_like(many), (1, 1000)).tensors["start"]
    assert torch.equal(starts.unique(), torch.arange(161))  # as far on both sides, and nowhere else


def test_gain_is_uniform_in_decibels():
    x = sounds()
    t, out = run(SoundAugment(gain=6, rate=RATE), x)
    assert torch.allclose(out, x / 32768 * t["gain"].view(-1, 1, 1))
    decibels = 20 * t["gain"].log10()
    assert decibels.abs().max() <= 6
    assert decibels.min() < -4
    assert decibels.max() > 4


def test_noise_is_white_and_as_loud_as_asked():
    x = sounds(length=4000)
    t, out = run(SoundAugment(noise=0.5, rate=RATE), x)
    noise = (out - x / 32768)[:, 0]
    loud = (x / 32768)[:, 0].square().mean(1).sqrt()
    assert torch.allclose(noise.std(1) / loud, t["noise"], rtol=0.06)
    assert (t["noise"] < 0.5).all()
    assert noise.mean(1).abs().max() < 0.01
    together = (noise / noise.std(1, keepdim=True)).double()
    echo = torch.corrcoef(together)
    assert (echo - torch.eye(50)).abs().max() < 0.1  # rows have nothing to do with each other
    for lag in (1, 2, 17):
        assert (together[:, lag:] * together[:, :-lag]).mean().abs() < 0.01
    assert not run(SoundAugment(noise=0.5, rate=RATE), torch.zeros_like(x))[1].any()


def test_the_noise_is_the_random_tables_own_function():
    key = random.bits(3, ROWS, 7, (73,))[:, 0]
    words = random._mix(key[:, None] + np.arange(1, 65, dtype=np.uint64) * random._GOLDEN)
    parts = sum(((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48))
    want = (parts - 2 * 0xFFFF).astype(np.float32) / np.float32(65536 / np.sqrt(3))
    got = white(torch.from_numpy(key.view(np.int64)), 64)
    assert np.allclose(got.numpy(), want, rtol=1e-6)
    long = white(torch.arange(20), 50_000)
    assert long.std().item() == pytest.approx(1, abs=0.01)
    assert (long.abs() > 2).float().mean().item() == pytest.approx(0.042, abs=0.004)  # a normal one: 0.0455


def test_a_stretch_is_silenced():
    x = sounds().abs() + 1
    t, out = run(SoundAugment(time_mask=0.4, rate=RATE), x)
    for row, (first, last) in enumerate(t["silent"].tolist()):
        silent = (out[row, 0] == 0).nonzero().flatten()
        assert len(silent) == pytest.approx(1000 * (last - first), abs=1)
        if len(silent):
            assert silent[-1] - silent[0] + 1 == len(silent)
    shares = (t["silent"][:, 1] - t["silent"][:, 0]).numpy()
    assert 0.3 < shares.max() <= 0.4
    assert t["silent"].max() <= 1


def test_a_band_is_filtered_out_and_nothing_else():
    x = sounds()
    t, out = run(SoundAugment(freq_mask=0.5, rate=RATE), x)
    before, after = torch.fft.rfft(x[:, 0] / 32768), torch.fft.rfft(out[:, 0])
    hertz = torch.fft.rfftfreq(1000, 1 / RATE)
    for row, (low, high) in enumerate(t["stopped"].tolist()):
        inside = (hertz >= low) & (hertz < high)
        assert torch.allclose(after[row, ~inside], before[row, ~inside], atol=1e-4)
        assert after[row, inside].abs().max() < 1e-4 if inside.any() else True
    mels = 2595 * torch.log10(1 + t["stopped"] / 700)
    assert (mels[:, 1] - mels[:, 0]).max() <= 0.5 * 2595 * np.log10(1 + 4000 / 700) + 1e-2
    assert t["stopped"].max() <= RATE / 2 + 1e-2


def test_a_row_gets_the_same_alone_or_among_others_and_another_view_something_else():
    augment, x = SoundAugment(**ALL, rate=RATE), sounds()
    _, whole = run(augment, x)
    draw = augment.draw(0, ROWS[7:9], np.zeros(2, dtype=int), x.shape[1:])
    assert torch.equal(augment.apply(x[7:9], draw)[0], whole[7:9])
    _, other = run(augment, x, view=1)
    assert not torch.equal(other, whole)
    assert torch.equal(run(augment, x)[1], whole)


def test_one_change_draws_the_same_with_or_without_the_others():
    x = sounds()
    for key, names in {"time_mask": ("silent",), "noise": ("noise", "key"), "freq_mask": ("stopped",)}.items():
        alone = run(SoundAugment(**{key: ALL[key]}, rate=RATE), x)[0]
        beside = run(SoundAugment(**ALL, rate=RATE), x)[0]
        assert all(torch.equal(alone[name], beside[name]) for name in names)


def test_settings_have_names_and_limits():
    assert not SoundAugment().active
    assert all(SoundAugment(**{k: v}).active for k, v in ALL.items())
    names = {SoundAugment(**{k: v}).identity() for k, v in ALL.items()}
    assert len(names) == 5
    with pytest.raises(Refused, match=r"data.augment.time_mask=2 must lie between 0 and 1"):
        SoundAugment(time_mask=2)
