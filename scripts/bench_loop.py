"""Speed and accuracy of plain training against a bare PyTorch loop, in the same process, in interleaved pairs.

python scripts/bench_loop.py speed                    # CPU-seconds, n >= 5: constant tensors, PIL loader, start, memory
python scripts/bench_loop.py mnist --root FOLDER      # the classic MNIST example, side by side over seeds
python scripts/bench_loop.py folder --root FOLDER     # ResNet-18 with augmentation on an image folder, side by side

Process CPU time on one thread: the wall clock of a shared machine says little.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sftc.build.bench import Bench
from sftc.cli.conf import conf_dir
from sftc.device import Device
from sftc.lab import Lab

ONE_THREAD = ("device=cpu", "device.threads=1", "quiet=true")


def make_lab(folder: Path, *overrides: str) -> Lab:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("train", [*ONE_THREAD, *overrides]), resolve=True)
    assert isinstance(cfg, dict)
    cfg.pop("hydra", None)
    return Bench(Device(**cfg["device"])).start(cfg, folder, "bench", list(overrides))


# Speed


class Pictures(Dataset):
    """What the usual example does: a PIL image per row, transformed one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def steps_on(model: nn.Module, batches, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def speed(repeats: int) -> None:
    torch.set_num_threads(1)
    print(
        "images per CPU-second, one thread, batch 64, 32 x 32 RGB, crop and flip, AdamW; median (min-max), ratio per pair"
    )
    for name, rows in (("mlp", 12800), ("simple_cnn", 12800), ("resnet18", 640)):
        with tempfile.TemporaryDirectory() as folder:
            _compare(name, rows, repeats, Path(folder))
    _start(max(3, repeats // 2))
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def _compare(name: str, rows: int, repeats: int, folder: Path) -> None:
    overrides = (f"model={name}", "data=fake", f"data.count={rows + 400}", "data.size=32", "data.channels=3")
    overrides += (
        "data.augment.crop=4",
        "data.augment.flip=0.5",
        "data.test_share=0.01",
        "data.val_share=0.01",
        "epochs=1",
    )
    overrides += ("data.workers=0", "model.pretrained=false")
    first = make_lab(folder / "first", *overrides)
    split = first.data.splits["train"]
    images, labels = split.table.read(split.rows), split.target[split.rows]
    n = len(labels)
    pictures = Pictures(images, labels)
    constant = [(images[:64], labels[:64])] * (n // 64)
    timed: dict[str, list[float]] = {"sftc": [], "constant": [], "loader": []}
    for i in range(repeats + 1):
        lab = make_lab(folder / f"run{i}", *overrides)
        took = {
            "sftc": cpu_seconds(lambda: lab.fit(lab.model())),
            "constant": cpu_seconds(lambda: steps_on(lab.model(), constant, 1e-3)),
            "loader": cpu_seconds(
                lambda: steps_on(lab.model().net, DataLoader(pictures, 64, shuffle=True), 1e-3)  # type: ignore[arg-type]
            ),
        }
        for key, seconds in took.items() if i else ():  # the first pair warms up
            timed[key].append(seconds)
    for key, seconds in timed.items():
        rates = [n / s for s in seconds]
        ratios = [s / own for s, own in zip(seconds, timed["sftc"], strict=True)]
        ratio = "" if key == "sftc" else f"  sftc is {_spread(ratios, '.3f')} times as fast"
        print(f"  {name:<10} {key:<9} {_spread(rates, '.0f')} images/s{ratio}  n={len(seconds)}")


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _start(repeats: int) -> None:
    """Wall-clock and CPU seconds from process start to the end of a one-step run, beside importing torch alone."""
    with tempfile.TemporaryDirectory() as folder:
        for what, code in (
            ("import torch", ["-c", "import torch"]),
            ("sftc train max_steps=1", ["-m", "sftc", "train"]),
        ):
            walls, cpus = [], []
            for i in range(repeats):
                rest = [*ONE_THREAD, "max_steps=1", f"out={folder}/{i}"] if code[0] == "-m" else []
                before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run([sys.executable, *code, *rest], check=True, cwd=folder)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                walls.append(time.perf_counter() - begun)
                cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            print(f"  {what:<24} {_spread(walls, '.2f')} s wall, {_spread(cpus, '.2f')} s CPU  n={repeats}")


# Accuracy


def bare(model, train, test, epochs, batch, optimizer, schedule, augment) -> float:
    """The loop everybody writes: shuffle, forward, cross-entropy, backward, step; accuracy of the last epoch."""
    images, labels = train
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(labels)).split(batch):
            if len(index) == 1:
                continue
            loss = F.cross_entropy(model(augment(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).sum() for x, y in zip(test[0].split(500), test[1].split(500), strict=True)]
    return float(sum(hits)) / len(test[1])


def tensors(lab: Lab, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    split = lab.data.splits[name]
    return split.table.read(split.rows), split.target[split.rows]


def crop_flip(images: torch.Tensor) -> torch.Tensor:
    padded = F.pad(images, (4, 4, 4, 4))
    out = []
    for x in padded:
        top, left = np.random.randint(0, 9, 2)
        x = x[:, top : top + 32, left : left + 32]
        out.append(x.flip(-1) if np.random.rand() < 0.5 else x)
    return torch.stack(out)


def side_by_side(overrides: tuple[str, ...], seeds: int, make_optimizer, augment) -> None:
    ours, theirs = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            lab = make_lab(Path(folder) / "run", *overrides, f"seed={seed}")
            epochs, batch = lab.settings.budget.epochs, lab.settings.batch_size
            took = cpu_seconds(lambda: lab.keep(lab.fit(lab.model())[0]))
            ours.append(lab.run.result["last"]["test"]["accuracy"])
            torch.manual_seed(1000 + seed)
            np.random.seed(seed)
            model = lab.model()
            train, test = tensors(lab, "train"), tensors(lab, "test")
            optimizer, schedule = make_optimizer(model, epochs * -(-len(train[1]) // batch))
            begun = time.process_time()
            theirs.append(bare(model, train, test, epochs, batch, optimizer, schedule, augment))
            spent = time.process_time() - begun
        print(
            f"  seed {seed}: sftc {ours[-1]:.4f} ({took:.0f} CPU-s)   bare {theirs[-1]:.4f} ({spent:.0f} CPU-s)",
            flush=True,
        )
    gaps = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    spread = statistics.stdev(gaps) if len(gaps) > 1 else float("nan")
    print(f"test accuracy of the last epoch: sftc {statistics.mean(ours):.4f}, bare {statistics.mean(theirs):.4f}")
    print(f"difference {statistics.mean(gaps):+.2f} points, standard deviation {spread:.2f}, n={len(gaps)}")


def mnist(root: str, seeds: int, epochs: int) -> None:
    def sgd(model: nn.Module, steps: int):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    overrides = ("experiment=sft_mnist", f"data.root={root}", f"epochs={epochs}")
    side_by_side(overrides, seeds, sgd, lambda x: x)


def folder(root: str, seeds: int, epochs: int) -> None:
    def sgd(model: nn.Module, steps: int):
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, 0.02, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    overrides = (
        "model=resnet18",
        "model.pretrained=false",
        "data=image_folder",
        f"data.root={root}",
        f"epochs={epochs}",
    )
    overrides += (
        "data.augment.crop=4",
        "data.augment.flip=0.5",
        "optim=sgd",
        "optim.lr=0.02",
        "optim.weight_decay=5e-4",
    )
    side_by_side((*overrides, "schedule.warmup=0"), seeds, sgd, crop_flip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "mnist", "folder"])
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "speed":
        speed(args.repeats)
    elif args.what == "mnist":
        mnist(args.root, args.seeds, args.epochs or 10)
    else:
        folder(args.root, args.seeds, args.epochs or 5)


if __name__ == "__main__":
    main()
