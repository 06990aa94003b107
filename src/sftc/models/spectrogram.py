"""Sounds as pictures: the log-mel spectrogram, made on the model's device, grey from 0 to 255.

So every net that reads pictures reads sounds, and published weights find the range they were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sftc.errors import Refused, choose, nearest
from sftc.types import Form

KEYS: dict[str, Any] = {"n_fft": "auto", "hop": "auto", "n_mels": 40, "level": "own"}
SPAN = {"own": 80.0, "full": 100.0}  # decibels from black to white
RATES = (1000, 384_000)
_FULL = 32768  # of int16: what floats call 1
_SILENCE = 1e-10  # power below which there is nothing


class LogMel(nn.Module):
    """Power in mel bands over time, in decibels.

    Args:
        rate: of the sounds, in samples a second.
        n_fft: samples of a spectrum, under a Hann window.
        hop: samples from one spectrum to the next.
        n_mels: triangular bands, evenly spaced from 0 to half the rate on the mel scale.
        level: where white is: "own", at the clip's loudest place; "full", at a tone as loud as samples can be.

    Raises:
        Refused: more bands than the spectrum can tell apart.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, rate: int, n_fft: int, hop: int, n_mels: int, level: str = "own") -> None:
        super().__init__()
        self.rate, self.n_fft, self.hop, self.n_mels, self.level = rate, n_fft, hop, n_mels, level
        bank = mel_bank(rate, n_fft, n_mels)
        if not (bank.sum(0) > 0).all():
            raise Refused(
                f"model.sound.n_mels={n_mels} is more than n_fft={n_fft} at {rate} samples a second can tell apart; "
                "lower it, or raise model.sound.n_fft"
            )
        # Not persistent: a checkpoint must not bring its own.
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("bank", torch.from_numpy(bank.T.astype(np.float32)), persistent=False)

    def forward(self, sounds: Tensor) -> Tensor:
        """[N, 1, T] int16, or float32 from -1 to 1 -> [N, 1, n_mels, 1 + T // hop] float32, low bands first."""
        with torch.autocast(sounds.device.type, enabled=False):
            x = sounds[:, 0].float() * (1 if sounds.is_floating_point() else 1 / _FULL)
            spectra = torch.stft(
                x, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
            )
            power = self.bank @ torch.view_as_real(spectra).square().sum(-1)
            loud = 10 * power.clamp(min=_SILENCE).log10()
            # A tone's spectrum is as high as half the sum of the window.
            top = loud.amax((1, 2), keepdim=True) if self.level == "own" else 20 * (self.window.sum() / 2).log10()
            return ((loud - top) / SPAN[self.level] + 1).clamp(0, 1).mul(255).unsqueeze(1)

    def picture(self, samples: int) -> tuple[int, int, int]:
        """(C, H, W) of what it makes of so many samples."""
        return 1, self.n_mels, 1 + samples // self.hop

    def extra_repr(self) -> str:
        return f"rate={self.rate}, n_fft={self.n_fft}, hop={self.hop}, n_mels={self.n_mels}, level={self.level}"


def mel_bank(rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Weights of the bins of a spectrum in each band, float64 [n_fft // 2 + 1, n_mels]: 2595 log10(1 + f / 700)."""
    hertz = np.linspace(0, rate / 2, n_fft // 2 + 1)[:, None]
    mels = np.linspace(0, 2595 * np.log10(1 + rate / 1400), n_mels + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def check(spec: Mapping[str, Any]) -> None:
    """Raises Refused: an unknown key of model.sound, or a value of no meaning."""
    node = spec.get("sound") or {}
    for key in node:
        if key not in KEYS:
            raise Refused(f"model.sound.{key} is not known{nearest(key, KEYS)} (one of: {', '.join(KEYS)})")
    choose("model.sound.level", node.get("level", "own"), SPAN)
    for key, least, most in (("n_fft", 16, 1 << 16), ("hop", 1, 1 << 16), ("n_mels", 8, 1024)):
        value = node.get(key, KEYS[key])
        if not (type(value) is int and least <= value <= most) and (value != "auto" or key == "n_mels"):
            raise Refused(f"model.sound.{key}={value} must be a whole number from {least} to {most}")


def build(spec: Mapping[str, Any], form: Form) -> LogMel:
    """The spectrogram of a model node, for sounds of a form.

    Raises:
        Refused: what `check` refuses; spectra that leave sound out or repeat it more than 16 times; no rate.
    """
    check(spec)
    node, rate = {**KEYS, **(spec.get("sound") or {})}, form.about.get("rate")
    if type(rate) is not int or not RATES[0] <= rate <= RATES[1]:
        raise Refused(f"sounds of {rate} samples a second cannot be read")
    if node["n_fft"] == "auto":
        node["n_fft"] = 1 << max(6, round(np.log2(rate * 0.032)))
    if node["hop"] == "auto":
        node["hop"] = round(rate * 0.01)
    if not node["n_fft"] / 16 <= node["hop"] <= node["n_fft"]:
        raise Refused(f"model.sound.hop={node['hop']} must lie between 1/16 of n_fft={node['n_fft']} and all of it")
    return LogMel(rate, **node)


def settings(made: LogMel) -> dict[str, Any]:
    """What `build` chose, as a node."""
    return {key: getattr(made, key) for key in KEYS}
