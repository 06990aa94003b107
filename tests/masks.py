"""Small pictures with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (16, 16), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """RGB [H, W, 3] and its mask [H, W]: rectangles in colours that tell the class, on a ground of class 0."""
    draw = np.random.default_rng(seed)
    height, width = size
    mask = np.zeros((height, width), np.uint8)
    for _ in range(3):
        top, left = draw.integers(0, height // 2), draw.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 2] = draw.integers(0, classes)
    colours = np.array([[40, 40, 40], [200, 60, 60], [60, 200, 60], [60, 60, 200]])[mask]
    return (colours + draw.integers(-30, 30, colours.shape)).clip(0, 255).astype(np.uint8), mask


def write(root: Path, n: int = 8, splits=("train", "val", "test"), size: tuple[int, int] = (16, 16), **more) -> Path:
    """<split>/images/*.png and <split>/masks/*.png; a corner of each mask is 255."""
    for s, split in enumerate(splits):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture, mask = scene(100 * s + i, size, **more)
            mask[:2, :2] = 255
            Image.fromarray(picture).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root
