"""Speed and accuracy of plain training against a bare PyTorch loop, side by side, in interleaved pairs.

python scripts/bench_loop.py speed                    # CPU-seconds: constant tensors, PIL loader, memory, start-up
python scripts/bench_loop.py checkpoint               # what a checkpoint costs, and its share of training
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
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sftc.build.bench import Bench
from sftc.cli.compose import check_all
from sftc.cli.conf import conf_dir
from sftc.device import Device
from sftc.lab import Lab

ONE_THREAD = ("device=cpu", "device.threads=1", "quiet=true")


def make_lab(folder: Path, *overrides: str, bench: Bench | None = None) -> Lab:
    cfg = check_all("train", [*ONE_THREAD, *overrides], [conf_dir()], sweep=False).values
    return (bench or Bench(Device(**cfg["device"]))).start(cfg, folder, "bench", list(overrides))


# Speed

SPEED = """Images per CPU-second, one thread, batch 64, 32 x 32 RGB, AdamW; median (min-max) of {n} interleaved rounds.
  sftc      lab.fit of one epoch, all of it: set-up, crop and flip, training, validation on 1 % as many rows, checkpoint
  constant  the same model and update rule (fused AdamW) on one batch held in memory: no data, no checks, no files
  usual     the loop of the usual example: DataLoader, PIL pictures, torchvision's crop and flip, torch's default AdamW
A ratio above 1 says that sftc is faster. Goals: 0.95 of constant for simple_cnn and resnet18, above 1 of usual."""
ROWS = {"mlp": 12800, "simple_cnn": 12800, "resnet18": 3200}  # an epoch of 1 to 10 CPU-seconds
SUBJECTS = ("sftc", "constant", "usual")
BARE = """import torch
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
loss = torch.nn.functional.cross_entropy(model(torch.rand(64, 1, 8, 8)), torch.randint(10, (64,)))
loss.backward()
optimizer.step()
"""


class Pictures(Dataset):
    """What the usual example does: a PIL image per row, transformed one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
        self.labels = labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def steps_on(model: nn.Module, batches, fused: bool | None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
    model.train()
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


class Race:
    """One model and its data; each subject trains one epoch on as many rows."""

    def __init__(self, name: str, rows: int, folder: Path, epochs: int = 1) -> None:
        data = ("data=fake", f"data.count={rows * 102 // 100}", "data.size=32", "data.channels=3", "data.workers=0")
        more = ("data.augment.crop=4", "data.augment.flip=0.5", "model.pretrained=false", f"epochs={epochs}")
        self.overrides = (f"model={name}", *data, "data.test_share=0.0098", "data.val_share=0.0098", *more)
        self.folder, self.runs = folder, 0
        self.bench = Bench(Device("cpu", threads=1))  # makes the data once for all labs
        self.images, self.labels = tensors(self.lab(), "train")
        self.pictures: Pictures | None = None

    def lab(self) -> Lab:
        self.runs += 1
        return make_lab(self.folder / str(self.runs), *self.overrides, bench=self.bench)

    def take(self, subject: str) -> float:
        """CPU-seconds of an epoch of this subject; its model and data are made beforehand."""
        lab = self.lab()
        model: nn.Module = lab.model()
        if subject == "sftc":
            return cpu_seconds(lambda: lab.fit(model))
        if subject == "constant":
            batches = [(self.images[:64], self.labels[:64])] * (len(self.labels) // 64)
            return cpu_seconds(lambda: steps_on(model, batches, fused=True))
        self.pictures = self.pictures or Pictures(self.images, self.labels)
        loader = DataLoader(self.pictures, 64, shuffle=True)
        return cpu_seconds(lambda: steps_on(model.net, loader, fused=None))  # type: ignore[arg-type]


def speed(repeats: int) -> None:
    print(SPEED.format(n=repeats), flush=True)
    with tempfile.TemporaryDirectory() as folder:  # the first time imports and allocates: not timed
        warm = Race("resnet18", 128, Path(folder))
        for subject in SUBJECTS:
            warm.take(subject)
    for name, rows in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            race, timed = Race(name, rows, Path(folder)), {subject: [] for subject in SUBJECTS}
            for i in range(repeats):
                for subject in SUBJECTS[i % 3 :] + SUBJECTS[: i % 3]:
                    timed[subject].append(race.take(subject))
        for subject, seconds in timed.items():
            rates = _spread([len(race.labels) / s for s in seconds], ".0f")
            ratios = _spread([s / own for s, own in zip(seconds, timed["sftc"], strict=True)], ".3f")
            ratio = "" if subject == "sftc" else f"  sftc / {subject} {ratios}"
            print(f"  {name:<10} {subject:<9} {rates} images/s{ratio}  n={len(seconds)}", flush=True)
    print("peak memory of a fresh process that makes the data and trains one subject for an epoch, MiB")
    for name in ("simple_cnn", "resnet18"):
        peaks = (f"{s} {_child([__file__, 'peak', '--of', f'{name}:{s}'])[2].strip()}" for s in SUBJECTS)
        print(f"  {name:<10}", *peaks, flush=True)
    _start(repeats)


def checkpoint(repeats: int) -> None:
    """Fits of two epochs with checkpoint.epochs=1: the first is saved with its optimizer, the end without."""
    print(
        f"checkpoints: median (min-max) of {repeats} fits of two epochs, AdamW; wall clock is the machine's, CPU ours"
    )
    for name, rows in ROWS.items():
        costs: list[tuple[float, float, float]] = []
        shares: list[tuple[float, float]] = []
        with tempfile.TemporaryDirectory() as folder:
            race = Race(name, rows, Path(folder), epochs=2)
            for _ in range(repeats):
                lab, spent = race.lab(), []
                model, kept = lab.model(), lab.run.checkpoints
                write = kept.write

                def timed(state) -> None:
                    wall, cpu = _both(lambda: write(state))
                    spent.append((1e3 * wall, 1e3 * cpu, kept.files()[0].stat().st_size / 1e6))

                kept.write = timed
                wall, cpu = _both(lambda: lab.fit(model))
                costs.append(spent[0])
                shares.append((sum(s[0] for s in spent) / wall / 10, sum(s[1] for s in spent) / cpu / 10))
        walls, cpus, sizes = zip(*costs, strict=True)
        of_wall, of_cpu = zip(*shares, strict=True)
        one = f"{_spread(walls, '.0f')} ms wall, {_spread(cpus, '.0f')} ms CPU, {statistics.median(sizes):.1f} MB"
        share = f"{_spread(of_wall, '.1f')} % of wall, {_spread(of_cpu, '.1f')} % of CPU"
        print(f"  {name:<10} {one}; share of training {share}  n={repeats}", flush=True)


def _both(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds and CPU-seconds."""
    begun = time.perf_counter()
    cpu = cpu_seconds(work)
    return time.perf_counter() - begun, cpu


def peak(of: str) -> None:
    """Print the most memory this process ever held, in MiB, after an epoch of MODEL:SUBJECT."""
    name, _, subject = of.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        Race(name, 256, Path(folder)).take(subject)  # few rows: what making them takes must not cover the rest
    print(f"{Device('cpu').peak_bytes() / 2**20:.0f}")


def _start(repeats: int) -> None:
    print(f"whole processes, start to exit, median (min-max) of {repeats} interleaved rounds")
    with tempfile.TemporaryDirectory() as folder:
        sftc = ["-m", "sftc", "train", *ONE_THREAD]
        commands = {
            "import torch": ["-c", "import torch"],
            "a bare script, one step": ["-c", BARE],
            "sftc train, stopped after its first step": [*sftc, "max_minutes=1e-9"],
            "sftc train max_steps=1, with its scores": [*sftc, "max_steps=1"],
        }
        took: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for i in range(repeats):
            for j, (what, args) in enumerate(commands.items()):
                out = [f"out={folder}/{i}-{j}"] if "sftc" in args else []
                took[what].append(_child([*args, *out])[:2])
    for what, times in took.items():
        walls, cpus = zip(*times, strict=True)
        print(f"  {what:<41} {_spread(walls, '.2f')} s wall, {_spread(cpus, '.2f')} s CPU  n={repeats}")


def _child(args: list[str]) -> tuple[float, float, str]:
    """Run Python: wall-clock seconds, CPU-seconds, what it printed."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 75):  # 75: stopped by max_minutes, as asked
        sys.exit(done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def _spread(values, form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


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


def side_by_side(overrides: tuple[str, ...], seeds: int, split: str, make_optimizer, augment) -> None:
    ours, theirs = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            lab = make_lab(Path(folder) / "run", *overrides, f"seed={seed}")
            epochs, batch = lab.settings.budget.epochs, lab.settings.batch_size
            took = cpu_seconds(lambda: lab.keep(lab.fit(lab.model())[0]))
            ours.append(lab.run.result["last"][split]["accuracy"])
            torch.manual_seed(1000 + seed)
            np.random.seed(seed)
            model = lab.model()
            train, test = tensors(lab, "train"), tensors(lab, split)
            optimizer, schedule = make_optimizer(model, epochs * -(-len(train[1]) // batch))
            begun = time.process_time()
            theirs.append(bare(model, train, test, epochs, batch, optimizer, schedule, augment))
            spent = time.process_time() - begun
        pair = f"sftc {ours[-1]:.4f} ({took:.0f} CPU-s)   bare {theirs[-1]:.4f} ({spent:.0f} CPU-s)"
        print(f"  seed {seed}: {pair}", flush=True)
    gaps = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    spread = statistics.stdev(gaps) if len(gaps) > 1 else float("nan")
    print(f"{split} accuracy of the last epoch: sftc {statistics.mean(ours):.4f}, bare {statistics.mean(theirs):.4f}")
    print(f"difference {statistics.mean(gaps):+.2f} points, standard deviation {spread:.2f}, n={len(gaps)}")


def mnist(root: str, seeds: int, epochs: int) -> None:
    def sgd(model: nn.Module, steps: int):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    overrides = ("experiment=sft_mnist", f"data.root={root}", f"epochs={epochs}")
    side_by_side(overrides, seeds, "test", sgd, lambda x: x)


def folder(root: str, seeds: int, epochs: int) -> None:
    def adamw(model: nn.Module, steps: int):
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, 1e-3)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    overrides = ("data=image_folder", f"data.root={root}", "data.test_share=0", f"epochs={epochs}", "schedule.warmup=0")
    overrides += ("model=resnet18", "model.pretrained=false", "data.augment.crop=4", "data.augment.flip=0.5")
    side_by_side(overrides, seeds, "val", adamw, crop_flip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "checkpoint", "mnist", "folder", "peak"])
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--of", default="simple_cnn:sftc", help="peak: MODEL:SUBJECT")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "speed":
        speed(args.repeats)
    elif args.what == "checkpoint":
        checkpoint(args.repeats)
    elif args.what == "peak":
        peak(args.of)
    elif args.what == "mnist":
        mnist(args.root, args.seeds, args.epochs or 10)
    else:
        folder(args.root, args.seeds, args.epochs or 5)


if __name__ == "__main__":
    main()
