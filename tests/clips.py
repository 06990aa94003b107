"""Small sounds whose classes are pitches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

PITCH = {"low": 300.0, "high": 1500.0}


def tone(pitch: float, seed: int, rate: int = 8000, seconds: float = 0.25) -> np.ndarray:
    """A tone with a little noise, float64 from -1 to 1."""
    draw = np.random.default_rng(seed)
    at = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * (pitch * at + draw.random())) + 0.02 * draw.standard_normal(len(at))


def write(path: Path, samples: np.ndarray, rate: int = 8000, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def clips(root: Path, splits=("train", "val", "test"), n: int = 6, rate: int = 8000, seconds: float = 0.25) -> Path:
    """root/<split>/<low or high>/<class>_<i>.wav"""
    for s, split in enumerate(splits):
        for c, (name, pitch) in enumerate(PITCH.items()):
            for i in range(n):
                write(root / split / name / f"{name}_{i}.wav", tone(pitch, 100 * s + 10 * c + i, rate, seconds), rate)
    return root


def digits(root: Path, n: int = 12) -> Path:
    """root/<0 or 1>/<0 or 1>_ann_<take>.wav, and all of them in root/train.csv."""
    names = [f"{digit}/{digit}_ann_{take}.wav" for digit in "01" for take in range(n)]
    for i, name in enumerate(names):
        write(root / name, tone(300.0 if name[0] == "0" else 1500.0, i, seconds=0.1))
    (root / "train.csv").write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    return root
