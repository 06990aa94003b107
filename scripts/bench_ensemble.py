"""What teams bring, and what fusing costs.

scripts/bench_ensemble.py digits [SEEDS=5]     300 digits, five members: accuracy, NLL and ECE of each way, mean and sd
scripts/bench_ensemble.py many [RUNS=50]       fuse=all of stored runs of 10,000 x 100 scores: CPU seconds, peak memory
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sftc.store import Run
from sftc.tasks import Classification
from sftc.types import Predictions

FEW = (
    "data=digits",
    "data.limit=300",
    "model=simple_cnn",
    "model.batch_norm=true",
    "optim.lr=0.003",
    "epochs=30",
    "device.threads=1",
)
RULES = ("vote", "mean", "weighted", "greedy", "stacking", "cascade")  # of five members that differ in their seeds
METRICS = ("accuracy", "nll", "ece")


def sftc(*words: str) -> None:
    """The command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "sftc", *words, "quiet=true"], check=True)


def digits(folder: Path, seeds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        base = (*FEW, f"seed={100 * seed}", f"data.split_seed={seed}")
        for members in ("seeds", "bagging", "boosting", "snapshot"):
            out = folder / f"{members}{seed}"
            epochs = ("epochs=150",) if members == "snapshot" else ()  # one training as long as all five of the others
            made = ("strategy=ensemble", f"strategy.members={members}", "strategy.n=5")
            rule = () if members != "seeds" else ("fuse@strategy.fuse=all",)
            sftc("train", *base, *epochs, *made, *rule, f"out={out}")
            result = Run.open(out).result
            if members != "seeds":
                found.setdefault(members, []).append(result["test"])
                continue
            rows = {row["name"]: row["test"] for row in result["team"]}
            found.setdefault("single", []).append(rows["member0"])
            for name in RULES:
                found.setdefault(name, []).append(rows[f"fuse {name}"])
    print("| test | " + " | ".join(METRICS) + " |\n| --- |" + " --- |" * len(METRICS))
    for name, each in found.items():
        cells = [_spread([m[metric] for m in each]) for metric in METRICS]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({statistics.stdev(values) if len(values) > 1 else 0:.4f})"


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


if __name__ == "__main__":
    mode, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory(prefix="bench_ensemble_") as place:
        {"digits": digits, "many": many}[mode](Path(place), number or {"digits": 5, "many": 50}[mode])
