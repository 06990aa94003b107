"""What making and fusing teams costs; what they bring is bench_teams.py.

scripts/bench_ensemble.py many [RUNS=50]         fuse=all of stored runs of 10,000 x 100 scores: CPU time, memory
scripts/bench_ensemble.py lockstep [ROUNDS=5]    five members on a folder of PNGs, one by one, in lockstep and stacked
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torchvision.io import write_png

from sftc import build, fusion
from sftc.cli import compose, conf
from sftc.store import Run
from sftc.tasks import Classification
from sftc.types import Predictions

PNGS = ("data=image_folder", "data.cache=none", "data.workers=0", "data.augment.flip=0.5", "device=cpu")
TEAM = ("strategy=ensemble", "strategy.n=5", "epochs=2", "device.threads=1")
NETS = {"mlp": ("model=mlp",), "simple_cnn": ("model=simple_cnn",)}
WAYS = ("false", "true", "vmap")  # of strategy.lockstep


def sftc(*words: str) -> None:
    """The command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "sftc", *words, "quiet=true"], check=True)


def many(folder: Path, count: int) -> None:
    """One real run of 100 classes, and copies of it that answer otherwise."""
    first = folder / "run0"
    shape = (
        "data=fake",
        "data.count=12000",
        "data.outputs=100",
        "data.channels=1",
        f"data.val_share={10 / 12}",
        "data.test_share=0",
    )
    sftc("train", *shape, "model=mlp", "epochs=1", "device.threads=1", f"out={first}")
    run = Run.open(first)
    stored, mark = run.predictions("val")
    task, g = Classification([str(i) for i in range(100)]), torch.Generator().manual_seed(0)
    signal = 3.0 * torch.nn.functional.one_hot(stored.target, 100)
    for i in range(count):
        member = Run(folder / f"run{i}")
        if i:
            shutil.copytree(first, member.path)
        scores = task.scores(signal + (1 + i / count) * torch.randn(signal.shape, generator=g))
        member.write_predictions("val", Predictions(scores, stored.target, stored.row), mark)
    print(f"{count} runs x {len(stored.row):,} rows x {stored.scores.shape[1]} classes")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    sftc("fuse", f"runs=[{folder}/run*]", "fuse=all", f"out={folder}/fused")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"CPU {cpu:.1f} s, wall {time.perf_counter() - begun:.1f} s, peak {after.ru_maxrss / 2**20:.2f} GiB")
    full(folder, count)


def full(folder: Path, count: int) -> None:
    """Stacking of full width, a head on all columns, which `all` leaves to classwise weights."""
    runs = [Run(folder / f"run{i}").predictions("val")[0] for i in range(count)]
    task = Classification([str(i) for i in range(100)])
    scores, target = torch.stack([p.scores for p in runs]), runs[0].target
    for few in (5, 10):
        begun = time.process_time()
        fusion.make("stacking", task, columns=10**9, alpha=100.0).fit(scores[:few], target)
        print(
            f"stacking of full width, {few * 100} columns, one fit: {time.process_time() - begun:.1f} CPU-s", flush=True
        )


def lockstep(folder: Path, rounds: int) -> None:
    """CPU seconds of a whole training in this process, all ways in turn, so that a busy machine hits each."""
    generator = torch.Generator().manual_seed(0)
    for split, each in (("train", 120), ("val", 20)):
        for name in range(10):
            (folder / "pngs" / split / str(name)).mkdir(parents=True)
            for i in range(each):
                picture = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                write_png(picture, str(folder / "pngs" / split / str(name) / f"{i}.png"))
    for name, net in NETS.items():
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for i in range(rounds + 1):
            for way in WAYS:
                words = [*PNGS, f"data.root={folder}/pngs", *TEAM, *net, f"strategy.lockstep={way}", "quiet=true"]
                words += ["fuse@strategy.fuse=mean"]
                cfg = compose.check_all("train", words, [conf.conf_dir()], sweep=False).values
                begun = time.process_time()
                build.train(cfg, folder / f"{name}-{way}{i}", words, "sftc train")
                took[way] += [time.process_time() - begun] * (i > 0)  # the first round imports
        for one, other in (("false", "true"), ("false", "vmap"), ("true", "vmap")):
            ratios = [a / b for a, b in zip(took[one], took[other], strict=True)]
            span = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(f"{name}: {one} / {other} {statistics.median(ratios):.2f} ({span}, n={rounds})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("many", "lockstep"))
    parser.add_argument("number", type=int, nargs="?", help="of runs, or of rounds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_ensemble_") as place:
        if args.what == "many":
            many(Path(place), args.number or 50)
        else:
            lockstep(Path(place), args.number or 5)
