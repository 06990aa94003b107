"""What teams of five bring on few rows, way by way, and beside torchensemble where it has the method.

scripts/bench_teams.py digits                     300 digits: accuracy, NLL and ECE on test, mean and standard deviation
scripts/bench_teams.py mnist --root FOLDER        500 of MNIST's rows, scored on its 10,000 test rows

torchensemble is found if it can be imported: `PYTHONPATH=SITE_PACKAGES_THAT_HOLD_IT scripts/bench_teams.py ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftc import build
from sftc.build import parts
from sftc.build.bench import Bench
from sftc.cli import compose, conf
from sftc.device import Device
from sftc.store import Run

Row = tuple[str, dict[str, float], int]  # a way, its metrics on test, how many members it has

N = 5
NET = ("model=simple_cnn", "model.batch_norm=true", "optim.lr=0.003", "device=cpu", "device.threads=1", "quiet=true")
NET += ("monitor=nll",)  # of few validation rows accuracy tells the best epoch badly, and often too early
PROBLEMS = {
    "digits": ("data=digits", "data.limit=300", "epochs=30"),
    "mnist": ("data=mnist", "data.limit=500", "data.val_share=0.01", "epochs=20"),
}
RULES = ("vote", "mean", "weighted", "greedy", "stacking")  # of members that differ in their seeds
METRICS = ("accuracy", "nll", "ece")


def sftc(command: str, out: Path, *overrides: str) -> Run:
    """The command, in this process."""
    cfg = compose.check_all(command, list(overrides), [conf.conf_dir()], sweep=False).values
    (build.fuse if command == "fuse" else build.train)(cfg, out, list(overrides), f"sftc {command} {overrides}")
    return Run.open(out)


def ours(folder: Path, base: tuple[str, ...], seed: int) -> Iterator[Row]:
    """Every way, on the rows that `base` says."""
    epochs = int(next(o for o in base if o.startswith("epochs=")).partition("=")[2])
    team = (*base, "strategy=ensemble", f"strategy.n={N}")
    seeds = sftc("train", folder / "seeds", *team, "fuse@strategy.fuse=all")
    rows = {row["name"]: row for row in seeds.result["team"]}
    yield "single", rows["member0"]["test"], 1
    for rule in RULES:
        yield rule, rows[f"fuse {rule}"]["test"], rows[f"fuse {rule}"]["members"]
    for members, own in (("bagging", ()), ("boosting", ()), ("snapshot", (f"epochs={N * epochs}",))):
        rule = "auto" if members == "boosting" else "mean"
        run = sftc("train", folder / members, *team, f"strategy.members={members}", f"fuse@strategy.fuse={rule}", *own)
        yield members, run.result["test"], run.result["model"]["members"]
    # A soup needs one start: half of a training, gone on with from there in five orders of the rows.
    half = (*base, f"epochs={epochs // 2}")
    start = sftc("train", folder / "start", *half)
    for i in range(N):
        own = (f"seed={seed + i}", f"model.checkpoint={start.path}/last.safetensors")
        sftc("train", folder / "soup" / str(i), *half, *own)
    soup = sftc("fuse", folder / "stirred", f"runs=[{folder}/soup/*]", "fuse=soup", "quiet=true")
    yield "soup", soup.result["test"], len(soup.result["soup"]["members"])


def theirs(base: tuple[str, ...], seed: int) -> Iterator[Row]:
    """torchensemble on the same rows, with the same net, optimizer and rate, and its own schedules and defaults."""
    peer = importlib.import_module("torchensemble")
    cfg = compose.check_all("train", list(base), [conf.conf_dir()], sweep=False).values
    data, epochs = Bench(Device("cpu", threads=1)).data(cfg), cfg["epochs"]
    train, test = (_tensors(data.splits[split]) for split in ("train", "test"))

    def net() -> Any:
        return parts.make_model(cfg["model"], data)()

    nets = type("Net", (), {"__new__": lambda cls: net()})
    for name, count in (("Voting", epochs), ("Bagging", epochs), ("SnapshotEnsemble", N * epochs)):
        torch.manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*train), cfg["batch_size"], shuffle=True, drop_last=False
        )
        team = getattr(peer, f"{name}Classifier")(estimator=nets, n_estimators=N, cuda=False)
        team.set_optimizer("AdamW", lr=cfg["optim"]["lr"], weight_decay=cfg["optim"]["weight_decay"])
        if name != "SnapshotEnsemble":
            team.set_scheduler("CosineAnnealingLR", T_max=epochs)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each member and epoch
            team.fit(loader, epochs=count, log_interval=10**9, save_model=False)
        team.eval()
        with torch.no_grad():
            scores = torch.cat([team(part) for part in test[0].split(1000)])
        task = parts.task(cfg, data)
        meter = task.meter(full=False)
        meter.update(task.logits(scores), test[1])
        yield f"torchensemble {name}", meter.compute(), N


def _tensors(split: Any) -> tuple[Tensor, Tensor]:
    return split.table.read(split.rows).float(), split.target[split.rows]


def table(name: str, root: str | None, seeds: int) -> None:
    found: dict[str, list[tuple[dict[str, float], int]]] = {}
    ways: list[Callable[[Path, tuple[str, ...], int], Iterator[Row]]] = [ours]
    versions = f"torch {torch.__version__}"
    logging.disable(logging.INFO)  # the peer's
    try:
        importlib.import_module("torchensemble")
        ways.append(lambda folder, base, seed: theirs(base, seed))
        versions += f", torchensemble {importlib.metadata.version('torchensemble')}"
    except ImportError as e:
        versions += f", no torchensemble ({e})"
    for seed in range(seeds):
        base = (*PROBLEMS[name], *NET, f"seed={100 * seed}", f"data.split_seed={seed}")
        base += () if root is None else (f"data.root={root}",)
        begun = time.process_time()
        with tempfile.TemporaryDirectory(prefix="bench_teams_") as place:
            for make in ways:
                for way, metrics, members in make(Path(place), base, 100 * seed):
                    found.setdefault(way, []).append((metrics, members))
        print(f"\n{seed + 1} of {seeds} seeds, {time.process_time() - begun:.0f} CPU-s for the last; {versions}")
        print("| test | " + " | ".join(METRICS) + " | members |\n| --- |" + " --- |" * (len(METRICS) + 1))
        for way, each in found.items():
            cells = [_spread([m[metric] for m, _ in each]) for metric in METRICS]
            count = statistics.mean(n for _, n in each)
            print(f"| {way} | " + " | ".join(cells) + f" | {count:g} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({statistics.stdev(values) if len(values) > 1 else 0:.4f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(PROBLEMS))
    parser.add_argument("--root", help="of mnist: the folder that holds it")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    if (args.what == "mnist") != bool(args.root):
        parser.error("mnist needs --root, digits has none")
    table(args.what, args.root, args.seeds)
