"""Segmentation of CamVid beside a bare PyTorch loop with the same net, on one CPU thread.

    PYTHONPATH=src python scripts/bench_segmentation.py ../shared/data/camvid_240x180 --epochs 20

The loop is what one writes by hand: PIL, flips, AdamW at a constant rate, the weights of the last epoch. It prints mIoU
and pixel accuracy on val and test, and seconds; `sftc train experiment=camvid` prints its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sftc import models
from sftc.types import Form

SIZE = (90, 120)  # height, width
CLASSES = 11
NET = {"family": "unet", "name": "unet", "backbone": "resnet10t", "decoder": [64, 48, 32, 24], "pretrained": "false"}


def read(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [N, 3, H, W] and classes long [N, H, W], -1 for unlabelled."""
    pictures, masks = [], []
    for line in (root / f"{split}.txt").read_text().split("\n"):
        if line.strip():
            picture, mask = (Image.open(root / name) for name in line.split())
            pictures.append(np.asarray(picture.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)))
            masks.append(np.asarray(mask.resize((SIZE[1], SIZE[0]), Image.Resampling.NEAREST)).astype(np.int64))
    target = torch.from_numpy(np.stack(masks))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.where(target < CLASSES, target, -1)


@torch.no_grad()
def score(net: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean IoU over the classes that occur, and the share of pixels that are right."""
    net.eval()
    table = torch.zeros(CLASSES, CLASSES)
    for a, b in zip(x.split(16), y.split(16), strict=True):
        said = net(a).argmax(1)[b >= 0]
        table += torch.bincount(b[b >= 0] * CLASSES + said, minlength=CLASSES**2).view(CLASSES, CLASSES)
    hit, union = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    return float((hit / union)[union > 0].mean()), float(hit.sum() / table.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    x, y = read(args.root, "train")
    net = models.build(NET, out_dim=CLASSES, form=Form((3, *SIZE), about={"pixels": True}))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.002, weight_decay=0.01)
    begun = time.perf_counter()
    for _ in range(args.epochs):
        net.train()
        for some in torch.randperm(len(x)).split(8):
            a, b = x[some], y[some]
            if torch.rand(()) < 0.5:
                a, b = a.flip(-1), b.flip(-1)
            loss = F.cross_entropy(net(a), b, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - begun
    for split in ("val", "test"):
        miou, accuracy = score(net, *read(args.root, split))
        print(f"{split}: miou {miou:.4f}, accuracy {accuracy:.4f}")
    print(f"{seconds:.0f} seconds of training")


if __name__ == "__main__":
    main()
