"""What rows without a label are worth: MNIST with few labels.

python scripts/bench_semi.py --root ../shared/data/mnist             # 100 and 500 labels of 6,000 rows, 5 seeds

Every method has the same net, labels, steps and learning rate; a seed draws its own labels. scikit-learn's gradient
boosting and logistic regression learn from the same labelled rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sftc import build, data
from sftc.cli import compose
from sftc.cli.conf import conf_dir
from sftc.store import Run

ROWS = 6_000
METHODS = {
    "labels alone": ("semi=pseudo", "semi.weight=1e-12"),  # the same batches, and nothing made of what has no label
    "pseudo": ("semi=pseudo",),
    "mean_teacher": ("semi=mean_teacher",),
    "fixmatch": ("semi=fixmatch",),
}


def config(root: str, labels: int, seed: int, epochs: int, *more: str) -> dict[str, Any]:
    own = (
        *(
            "data=mnist",
            f"data.root={root}",
            f"data.limit={ROWS}",
            f"data.unlabeled={1 - labels / ROWS}",
            "data.eval_limit=2000",
        ),
        *("model=simple_cnn", f"epochs={epochs}", "optim.lr=0.001", f"seed={seed}", f"data.split_seed={seed}"),
        *("data.augment.crop=2", "device=cpu", "device.threads=1", "quiet=true", *more),
    )
    return compose.check_all("train", list(own), [conf_dir()], sweep=False).values


def trees(cfg: dict[str, Any]) -> dict[str, float]:
    """scikit-learn on the same labelled rows: test accuracy in percent."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    held = data.build(cfg["data"])

    def split(name: str) -> tuple[Any, Any]:
        part = held.splits[name]
        rows = part.rows[part.target[part.rows] >= 0]
        return part.table.read(rows).flatten(1).numpy() / 255, part.target[rows].numpy()

    train, test = split("train"), split("test")
    models = {"gradient boosting": HistGradientBoostingClassifier(), "logistic": LogisticRegression(max_iter=500)}
    return {name: 100 * model.fit(*train).score(*test) for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="../shared/data/mnist")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for labels in args.labels:
        found: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            for name, more in METHODS.items():
                begun = time.process_time()
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "run"
                    build.train(config(args.root, labels, seed, args.epochs, *more), out, [], "bench")
                    found.setdefault(name, []).append(100 * Run.open(out).result["test"]["accuracy"])
                seconds.setdefault(name, []).append(time.process_time() - begun)
                print(f"{labels} labels, seed {seed}: {name} {found[name][-1]:.2f}", flush=True)
            for name, value in trees(config(args.root, labels, seed, args.epochs)).items():
                found.setdefault(name, []).append(value)
        print(f"\n{labels} labels of {ROWS:,} rows, test accuracy in %, {args.seeds} seeds")
        for name, values in found.items():
            cost = f"{statistics.mean(seconds[name]):6.0f} CPU-s" if name in seconds else ""
            print(f"{name:18} {statistics.mean(values):6.2f} +- {statistics.stdev(values):.2f} {cost}")


if __name__ == "__main__":
    main()
