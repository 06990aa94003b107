"""Segmentation of CamVid beside a bare PyTorch loop with the same net, on one CPU thread.

    PYTHONPATH=src python scripts/bench_segmentation.py ../shared/data/camvid_240x180 --epochs 20
    PYTHONPATH=src python scripts/bench_segmentation.py memory        # peak memory by number and size of pictures

The loop is what one writes by hand: PIL, flips, AdamW at a constant rate, the weights of the last epoch. It prints mIoU
and pixel accuracy on val and test, and seconds; `sftc train experiment=camvid` prints its own.

`memory` makes scenes of 11 classes, half of them to train on, streams them through short runs (`data.cache=none`) and
fuses two of them: each in a process of its own, whose peak resident memory is printed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sftc import build, models
from sftc.cli import compose
from sftc.cli.conf import conf_dir
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


def scenes(root: Path, count: int, size: tuple[int, int]) -> None:
    """`count` noisy pictures of stripes with their masks; a half for train, a quarter each for val and test."""
    draw = np.random.default_rng(0)
    for i in range(count):
        split = ("train", "val", "train", "test")[i % 4]
        mask = (np.add.outer(np.arange(size[0]), np.arange(size[1])) // (5 + i % 7) % CLASSES).astype(np.uint8)
        picture = (20 * mask[..., None] + draw.integers(0, 20, (*size, 3))).astype(np.uint8)
        for kind, array in (("images", picture), ("masks", mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / split / kind / f"{i}.png")


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a run and of fusing two, by how many pictures there are and how large they are."""
    for count, height, width in args.scenes:
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            scenes(home / "data", count, (height, width))
            own = [f"data.root={home / 'data'}", "data=segmentation_folder", "data.cache=none", "data.workers=0"]
            own += ["model=fcn", "model.channels=[8,8]", "model.depth=1", "batch_size=4", "max_steps=4", "device=cpu"]
            runs = f"runs=[{home / 'a'},{home / 'b'}]"
            tasks = [("train", "a", [*own, "device.threads=1", "seed=0"]), ("train", "b", [*own, "seed=1"])]
            tasks += [("fuse", rule, [runs, f"fuse={rule}"]) for rule in ("mean", "all")]
            for command, out, words in tasks:
                begun = time.perf_counter()
                code = [sys.executable, __file__, "one", command, str(home / out), *words, "quiet=true"]
                peak = subprocess.run(code, capture_output=True, text=True, check=True).stdout.split()[-1]
                seconds = time.perf_counter() - begun
                what = f"{count} pictures of {width} x {height}, {command} {out}"
                print(f"{what}: {peak} MiB at most, {seconds:.0f} s", flush=True)


def one(command: str, out: str, words: list[str]) -> None:
    """A run of this process alone, and its peak of resident memory in MiB."""
    torch.set_num_threads(1)
    cfg: dict[str, Any] = compose.check_all(command, words, [conf_dir()], sweep=False).values
    {"train": build.train, "fuse": build.fuse}[command](cfg, Path(out), [], "bench")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a folder as CamVid's, or: memory")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.root == "memory":
        args.scenes = [(80, 192, 256), (800, 192, 256), (80, 608, 808)]
        memory(args)
        return
    compare(Path(args.root), args)


def compare(root: Path, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    x, y = read(root, "train")
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
        miou, accuracy = score(net, *read(root, split))
        print(f"{split}: miou {miou:.4f}, accuracy {accuracy:.4f}")
    print(f"{seconds:.0f} seconds of training")


if __name__ == "__main__":
    main()
