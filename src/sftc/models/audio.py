"""Nets for spectrograms (1, bands, times): what they learn about time and about pitch is not the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def audio_cnn(
    shape: tuple[int, ...], out_dim: int, channels: Sequence[int] = (16, 32, 64), dropout: float = 0.3
) -> nn.Sequential:
    """Convolutions of 3 x 3 with batch normalisation, each halving bands and times. The head reads each band that is
    left, since a sound is not the same at another pitch; of times their mean and largest, so clips have any length."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    height, width = shape[1:]
    for i, (before, after) in enumerate(pairwise([shape[0], *channels]), 1):
        parts = [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        if min(height, width) >= 4:
            parts.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        layers[f"conv{i}"] = nn.Sequential(*parts)
    layers["pool"] = Pool()
    layers["dropout"] = nn.Dropout(dropout)
    layers["head"] = nn.Linear(channels[-1] * height, out_dim)
    return nn.Sequential(layers)


def audio_bilstm(
    shape: tuple[int, ...], out_dim: int, units: int = 96, layers: int = 1, dropout: float = 0.3
) -> nn.Sequential:
    """A recurrent net (LSTM) that reads the spectra in time from both ends; then the mean over time."""
    return nn.Sequential(
        OrderedDict(
            spectra=Spectra(shape[0] * shape[1]),
            lstm=Lstm(shape[0] * shape[1], units, layers, dropout if layers > 1 else 0.0),
            pool=Mean(),
            dropout=nn.Dropout(dropout),
            head=nn.Linear(2 * units, out_dim),
        )
    )


class Pool(nn.Module):
    """[N, C, bands, times] -> [N, C * bands]: the mean over times and the largest, added (Kong et al. 2020)."""

    def forward(self, maps: Tensor) -> Tensor:
        return (maps.mean(3) + maps.amax(3)).flatten(1)


class Mean(nn.Module):
    """[N, times, D] -> [N, D]."""

    def forward(self, steps: Tensor) -> Tensor:
        return steps.mean(1)


class Spectra(nn.Module):
    """[N, C, bands, times] -> [N, times, C * bands], each with a mean and scale of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.norm(pictures.flatten(1, 2).transpose(1, 2))


class Lstm(nn.Module):
    """nn.LSTM that gives its steps alone: [N, times, D] -> [N, times, 2 * units]."""

    def __init__(self, width: int, units: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, units, layers, batch_first=True, bidirectional=True, dropout=dropout)

    def forward(self, steps: Tensor) -> Tensor:
        out: tuple[Tensor, object] = self.lstm(steps)
        return out[0]
