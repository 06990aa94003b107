"""The log-mel spectrogram against one computed by hand, and models that read sounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch

from clips import tone
from sftc import models
from sftc.errors import Refused
from sftc.models.spectrogram import LogMel, mel_bank
from sftc.types import Form

SOUND = Form((1, 2000), about={"rate": 8000})


def node(family: str, **more) -> dict:
    return {"family": family, "name": more.pop("name", family), **more}


def by_hand(x: np.ndarray, rate: int, n_fft: int, hop: int, n_mels: int) -> np.ndarray:
    """Decibels [n_mels, frames], in loops and with scipy's Fourier transform."""
    window = scipy.signal.get_window("hann", n_fft)
    padded = np.pad(x, n_fft // 2)
    frames = [padded[i : i + n_fft] * window for i in range(0, len(padded) - n_fft + 1, hop)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    top = 2595 * math.log10(1 + rate / 2 / 700)
    out = np.zeros((n_mels, len(frames)))
    for band in range(n_mels):
        left, middle, right = (700 * (10 ** (top * (band + i) / (n_mels + 1) / 2595) - 1) for i in range(3))
        for k in range(n_fft // 2 + 1):
            f = k * rate / n_fft
            if left < f < right:
                weight = (f - left) / (middle - left) if f <= middle else (right - f) / (right - middle)
                out[band] += weight * power[:, k]
    return 10 * np.log10(np.maximum(out, 1e-10))


@pytest.mark.parametrize(("rate", "n_fft", "hop", "n_mels"), [(8000, 256, 80, 40), (16_000, 400, 160, 32)])
def test_the_spectrogram_is_what_the_formula_says(rate: int, n_fft: int, hop: int, n_mels: int):
    clip = tone(700, 3, rate)
    clip[: len(clip) // 3] *= 1e-3
    samples = torch.from_numpy((clip * 32768).round().astype(np.int16)).view(1, 1, -1)
    db = by_hand(samples[0, 0].numpy() / 32768, rate, n_fft, hop, n_mels)
    own = LogMel(rate, n_fft, hop, n_mels)
    want = np.clip((db - db.max()) / 80 + 1, 0, 1) * 255
    got = own(samples)
    assert got.shape == (1, *own.picture(len(clip)))
    assert got[0, 0].numpy() == pytest.approx(want, abs=0.02)
    full = LogMel(rate, n_fft, hop, n_mels, "full")(samples)[0, 0].numpy()
    top = 20 * math.log10(scipy.signal.get_window("hann", n_fft).sum() / 2)
    assert full == pytest.approx(np.clip((db - top) / 100 + 1, 0, 1) * 255, abs=0.02)
    assert 150 < want.std() + want.max() < 400  # something is to be seen


def test_a_tone_is_bright_in_the_band_of_its_pitch():
    mel = LogMel(8000, 256, 80, 40)
    for pitch in (300, 1000, 3000):
        picture = mel(torch.from_numpy(tone(pitch, 0)).float().view(1, 1, -1))[0, 0]
        band = int(picture.mean(1).argmax())
        centre = 700 * (10 ** (2595 * math.log10(1 + 4000 / 700) * (band + 1) / 41 / 2595) - 1)
        assert centre == pytest.approx(pitch, rel=0.08)


def test_loudness_counts_only_where_asked():
    clip = torch.from_numpy(tone(500, 1)).float().view(1, 1, -1)
    own, full = LogMel(8000, 256, 80, 40), LogMel(8000, 256, 80, 40, "full")
    assert torch.allclose(own(clip), own(clip / 8), atol=0.5)
    assert (full(clip) - full(clip / 8)).mean() > 20
    assert own(torch.zeros(2, 1, 2000)).isfinite().all()
    assert own(torch.zeros(1, 1, 3)).shape == (1, 1, 40, 1)


def test_it_stays_exact_in_mixed_precision_and_is_in_no_file():
    model = models.build(node("audio_cnn"), out_dim=3, form=SOUND)
    clip = torch.randn(2, 1, 2000)
    mel = model.prepare.spectrogram
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mel(clip), LogMel(8000, 256, 80, 40)(clip))
    assert not [k for k in model.state_dict() if "spectrogram" in k]


def test_every_band_sees_something_or_is_refused():
    assert mel_bank(8000, 256, 40).sum(0).min() > 0
    with pytest.raises(Refused, match=r"model.sound.n_mels=128 is more than n_fft=256 at 8000"):
        models.build(node("audio_cnn", sound={"n_mels": 128}), out_dim=2, form=SOUND)


@pytest.mark.parametrize(
    ("sound", "says"),
    [
        ({"hop": 1}, r"model.sound.hop=1 must lie between 1/16 of n_fft=256"),
        ({"hop": 300}, r"model.sound.hop=300 must lie between"),
        ({"level": "loud"}, "model.sound.level=loud"),
        ({"n_mel": 40}, "model.sound.n_mel is not known; did you mean 'n_mels'"),
        ({"n_fft": 2.5}, "model.sound.n_fft=2.5 must be a whole number"),
        ({"n_mels": "auto"}, "model.sound.n_mels=auto must be a whole number"),
    ],
)
def test_settings_of_no_meaning_are_one_line(sound: dict, says: str):
    with pytest.raises(Refused, match=says) as error:
        models.build(node("audio_cnn", sound=sound), out_dim=2, form=SOUND)
    assert "\n" not in str(error.value)


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(Refused, match="sounds of None samples a second"):
        models.build(node("audio_cnn"), out_dim=2, form=Form((1, 2000)))


READERS = [
    node("audio_cnn", channels=[8, 8]),
    node("audio_bilstm", units=8, layers=2, dropout=0.1),
    node("simple_cnn"),
    node("mlp", hidden=[8]),
    node("linear"),
    node("cifar", name="resnet8"),
    node("timm", name="resnet10t", pretrained=False),
]


@pytest.mark.parametrize("spec", READERS, ids=lambda s: s["name"])
def test_whoever_reads_pictures_reads_sounds(spec: dict):
    model = models.build(spec, out_dim=3, form=SOUND).eval()
    clips = torch.randint(-9000, 9000, (2, 1, 2000), dtype=torch.int16)
    assert model(clips).shape == (2, 3)
    assert torch.equal(model(clips), model(clips.float() / 32768))
    assert model.facts["sound"] == {"n_fft": 256, "hop": 80, "n_mels": 40, "level": "own"}
    again = models.build({**spec, "sound": model.facts["sound"]}, out_dim=3, form=SOUND)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(clips), model(clips))


@pytest.mark.parametrize("name", ["audio_cnn", "audio_bilstm"])
def test_nets_for_sounds_take_any_length_and_refuse_other_rows(name: str):
    model = models.build(node(name), out_dim=3, form=SOUND).eval()
    assert model(torch.zeros(2, 1, 777)).shape == (2, 3)
    with pytest.raises(Refused, match=f"model={name} reads sounds, the data has pictures; use model=simple_cnn"):
        models.build(node(name), out_dim=3, form=(1, 8, 8))


def test_the_lstm_hears_the_order_and_reads_from_both_ends():
    model = models.build(node("audio_bilstm"), out_dim=3, form=SOUND).eval()
    clip = torch.from_numpy(np.r_[tone(300, 0, seconds=0.125), tone(1500, 0, seconds=0.125)]).float().view(1, 1, -1)
    assert not torch.allclose(model(clip), model(clip.flip(-1)), atol=1e-3)
    lstm = model.get_submodule("net.lstm")
    steps = torch.randn(1, 9, 40)
    out = lstm(steps)
    changed = steps.clone()
    changed[:, 0] += 1
    assert not torch.equal(lstm(changed)[:, -1, :96], out[:, -1, :96])
    assert torch.equal(lstm(changed)[:, -1, 96:], out[:, -1, 96:])  # backwards, the last step is the first
