"""What training sounds go through, in two halves like pictures: `draw` looks parameters up in the random table, `apply`
is a pure function of (raw batch, parameters).

All of it happens to the waveform, masks too: a stretch of silence and a band filtered out are what SpecAugment's masks
(Park et al. 2019) leave of a spectrogram, whatever spectrogram a model makes. So teacher and student hear the same, and
answers can be stored.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from sftc.data import random
from sftc.data.augment import Augment, Draw, expect_within

VERSION = 1  # raise it when the same parameters would give other samples
FULL = 32768  # of int16: what floats call 1

# Columns of the random table, never reused: pictures have 0 to 63.
_SHIFT, _GAIN, _NOISE, _TIME, _BAND = (70,), (71,), (72, 73), (74, 75), (76, 77)
_SPREAD = 65536 / math.sqrt(3)  # standard deviation of the sum of four uniform 16-bit numbers


class SoundAugment:
    """What training sounds go through, in this order. Everything off by default.

    Args:
        shift: seconds that a clip is moved by at most; of one longer than data.seconds another part is heard.
        gain: decibels that it gets louder or softer by at most.
        noise: most white noise, as a share of the clip's own loudness (root mean square).
        time_mask: longest stretch that is silenced, as a share of the clip.
        freq_mask: widest band that is filtered out, as a share of the mel scale from 0 to half the rate.
        rate: of the sounds, in samples a second.

    Raises:
        Refused: a value out of range.
    """

    mixes = False  # no batch of sounds carries partners

    def __init__(
        self,
        *,
        shift: float = 0.0,
        gain: float = 0.0,
        noise: float = 0.0,
        time_mask: float = 0.0,
        freq_mask: float = 0.0,
        rate: int = 16_000,
    ) -> None:
        self.shift, self.gain, self.noise, self.rate = shift, gain, noise, rate
        self.time_mask, self.freq_mask = time_mask, freq_mask
        expect_within(self, shift=600, gain=60, noise=10, time_mask=1, freq_mask=1)
        self.reach = round(shift * rate)  # samples that must be held on both sides of what is heard

    @property
    def active(self) -> bool:
        return max(self.reach, self.gain, self.noise, self.time_mask, self.freq_mask) > 0

    def unmixed(self) -> SoundAugment:
        return self

    def identity(self) -> str:
        """Names the settings: equal strings give equal samples for the same seed, row and view."""
        names = ("shift", "gain", "noise", "time_mask", "freq_mask", "rate")
        return f"sound v{VERSION}:" + ",".join(f"{k}={getattr(self, k)}" for k in names)

    def draw(self, seed: int, row: np.ndarray, view: np.ndarray, shape: tuple[int, ...]) -> Draw:
        """Parameters of each row, a pure function of (seed, row, view)."""
        look = functools.partial(random.uniform, seed, row, view)
        t: dict[str, np.ndarray] = {}
        if self.reach:
            t["start"] = (look(_SHIFT)[:, 0] * (2 * self.reach + 1)).astype(np.int64)
        if self.gain:
            t["gain"] = 10 ** (self.gain * (2 * look(_GAIN)[:, 0] - 1) / 20)
        if self.noise:
            t["noise"] = self.noise * look(_NOISE)[:, 0]
            t["key"] = random.bits(seed, row, view, _NOISE[1:])[:, 0].view(np.int64)
        if self.time_mask:
            t["silent"] = _span(look(_TIME), self.time_mask)
        if self.freq_mask:
            t["stopped"] = _hertz(_span(look(_BAND), self.freq_mask), self.rate)
        floats = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in t.items()}
        return Draw({k: torch.from_numpy(v) for k, v in floats.items()}, None, None)

    def apply(self, sounds: Tensor, draw: Draw) -> tuple[Tensor, None]:
        """[n, 1, T + 2 * reach] int16, or float32 from -1 to 1 -> float32 [n, 1, T]; nobody is mixed with a partner."""
        t, x = draw.tensors, sounds[:, 0]
        if "start" in t:
            windows = x.unfold(1, x.shape[1] - 2 * self.reach, 1)  # every place is the start of one: no copy
            x = windows[torch.arange(len(x), device=x.device), t["start"]]
        x = x.float() if x.is_floating_point() else x.float() / FULL
        if "gain" in t:
            x = x * t["gain"].unsqueeze(1)
        if "noise" in t:
            loudness = x.square().mean(1).sqrt() * t["noise"]
            x = x + loudness.unsqueeze(1) * white(t["key"], x.shape[1])
        if "silent" in t:
            at = torch.arange(x.shape[1], device=x.device) / x.shape[1]
            x = x.masked_fill(_within(at, t["silent"]), 0)
        if "stopped" in t:
            spectrum = torch.fft.rfft(x)
            at = torch.fft.rfftfreq(x.shape[1], 1 / self.rate, device=x.device)
            x = torch.fft.irfft(spectrum.masked_fill(_within(at, t["stopped"]), 0), x.shape[1])
        return x.unsqueeze(1), None


Changes = Augment | SoundAugment


def _span(u: np.ndarray, most: float) -> np.ndarray:
    """[n, 2]: where a stretch of up to `most` begins and ends, in [0, 1]."""
    wide = u[:, 0] * most
    first = u[:, 1] * (1 - wide)
    return np.stack((first, first + wide), 1)


def _hertz(share: np.ndarray, rate: int) -> np.ndarray:
    """Shares of the mel scale (2595 log10(1 + f / 700)) from 0 to half the rate, as frequencies."""
    return 700 * ((1 + rate / 1400) ** share - 1)


def _within(at: Tensor, span: Tensor) -> Tensor:
    """[k] places, [n, 2] spans -> bool [n, k]."""
    return (at >= span[:, :1]) & (at < span[:, 1:])


def white(key: Tensor, length: int) -> Tensor:
    """White noise, float32 [n, length] of mean 0 and deviation 1: integers up to the end, so the same on any device.

    The random table's own function (splitmix64) of a key [n] and the sample's number. Sums of four uniform numbers are
    normal as far as an ear or a net can tell.
    """
    x = key.unsqueeze(1) + torch.arange(1, length + 1, device=key.device) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _right(x, 31)
    total = sum((x >> s) & 0xFFFF for s in (0, 16, 32, 48))
    return (total - 2 * 0xFFFF).float() / _SPREAD  # type: ignore[union-attr]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _right(x: Tensor, by: int) -> Tensor:
    """The words without a sign, shifted: torch knows only signed ones."""
    return (x >> by) & ((1 << (64 - by)) - 1)
