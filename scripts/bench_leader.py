"""What a leader gains, and what its followers cost.

python scripts/bench_leader.py digits                 # leader against from scratch, over seeds, each at its best rate
python scripts/bench_leader.py speed                  # followers from stored outputs, and three at once

Process CPU time on one thread, in interleaved rounds: the wall clock of a shared machine says little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sftc import build
from sftc.build.bench import Bench
from sftc.cli import compose
from sftc.cli.conf import conf_dir
from sftc.device import Device
from sftc.store import Run
from sftc.strategies import following
from sftc.strategies.following import Following

ONE_THREAD = ("device=cpu", "device.threads=1", "quiet=true")
RATES = (0.001, 0.003, 0.01, 0.03)
SPLITS = ("val", "test")
SCRATCH, FIRST = "from scratch", "2 blocks, a tenth of the rate"
WAYS: dict[str, tuple[str, ...]] = {
    SCRATCH: (),
    FIRST: ("strategy.keep=2", "strategy.keep_lr=0.1"),
    "2 blocks, frozen": ("strategy.keep=2", "strategy.keep_lr=0"),
    "2 blocks, the same rate": ("strategy.keep=2", "strategy.keep_lr=1"),
    "4 blocks, a tenth of the rate": ("strategy.keep=4", "strategy.keep_lr=0.1"),
}
WIDEST = max(map(len, WAYS))


def config(*overrides: str) -> dict[str, Any]:
    return compose.check_all("train", [*ONE_THREAD, *overrides], [conf_dir()], sweep=False).values


def digits(seeds: int, rows: list[int]) -> None:
    """All learn the same few rows for as many epochs, other rows with each seed; each way takes the rate that is best
    for it on validation."""
    with tempfile.TemporaryDirectory() as folder:
        for n in rows:
            found, sources = _learned(Path(folder), seeds, n)
            best = {}
            for who in WAYS:
                for lr in RATES:
                    val, test = (found[who, lr][s] for s in SPLITS)
                    print(f"{n} rows, {who:{WIDEST}} lr {lr:<6g} val {_spread(val)}  test {_spread(test)}")
                best[who] = max(RATES, key=lambda lr: statistics.mean(found[who, lr]["val"]))
            alone = found[SCRATCH, best[SCRATCH]]
            for who in WAYS:
                own = found[who, best[who]]
                pairs = [a - b for a, b in zip(own["test"], alone["test"], strict=True)]
                said = (
                    "" if who == SCRATCH else f"  difference {_spread(pairs)} ({', '.join(f'{p:+.1f}' for p in pairs)})"
                )
                print(f"{n} rows, {who:{WIDEST}} takes lr {best[who]:g}: test {_spread(own['test'])}{said}")
            print(
                f"{n} rows: training took {statistics.mean(alone['seconds']):.1f} s each, "
                f"the source {statistics.mean(sources):.1f} s before",
                flush=True,
            )


def _learned(
    folder: Path, seeds: int, rows: int
) -> tuple[dict[tuple[str, float], dict[str, list[float]]], list[float]]:
    """Scores in percent by who learned, at which rate; and seconds that each seed's source took."""
    found = {(who, lr): {s: [] for s in (*SPLITS, "seconds")} for who in WAYS for lr in RATES}
    sources = []
    for seed in range(seeds):
        for lr in RATES:
            begun = time.process_time()
            for i, (who, keys) in enumerate(WAYS.items()):
                if who == SCRATCH:  # made beside the first leader
                    continue
                first = who == FIRST
                cfg = config(
                    *("experiment=leader_digits", f"data.limit={rows}", f"optim.lr={lr}", *keys),
                    *(f"seed={seed}", f"data.split_seed={seed}", f"strategy.source_seed={1000 + seed}"),
                    *("strategy.followers=[]", f"strategy.baseline={str(first).lower()}"),
                )
                out = folder / f"{rows}-{seed}-{lr}-{i}"
                build.train(cfg | {"out": str(out)}, out, [], "bench")
                run = Run.open(out)
                for name, member in ((who, "leader"), (SCRATCH, "scratch-leader"))[: 1 + first]:
                    result = Run.open(run.member(member)).result
                    for s in SPLITS:
                        found[name, lr][s].append(100 * result[s]["accuracy"])
                    found[name, lr]["seconds"].append(result["seconds"])
            print(f"{rows} rows, seed {seed}, lr {lr:g}: {time.process_time() - begun:.1f} CPU-s", flush=True)
        sources.append(Run.open(run.reference("source") or "").result["seconds"])
    return found, sources


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):6.2f} +- {statistics.stdev(values):.2f}"


SUBJECTS = {"live, one pass": "live", "stored, one pass": "cached", "live, apart": "live"}


def speed(rounds: int, epochs: int) -> None:
    """Three mlp followers on the logits of one resnet18 at 32 pixels, 1,000 rows."""
    data = (
        "data=fake",
        "data.count=1250",
        "data.outputs=10",
        "data.size=32",
        "model=resnet18",
        "model.pretrained=false",
    )
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(*data, f"epochs={epochs}", "model.input_size=32")
        home = Bench(Device(**cfg["device"])).start(cfg, Path(folder) / "run", "bench", [])
        leader = home.fork("leader")
        (fitted,) = leader.fit(leader.model(), epochs=1)
        leader.keep(fitted)
        entry = {"model": "mlp", "hidden": [50], "dropout": 0.0, "batch_norm": False, "tap": "logits"}
        times: dict[str, list[float]] = {name: [] for name in SUBJECTS}
        for r in range(rounds):
            for name, outputs in SUBJECTS.items():
                node = {"leaders": [str(leader.run.path)], "alpha": 1.0, "temperature": 2.0, "outputs": outputs}
                model = following.node(entry, [following.bare(leader)], home.facts, "concat")
                team = [
                    home.fork(f"{name[:5]}{name[-5:]}-{r}-{i}".replace(" ", ""), seed=i, model=model) for i in range(4)
                ]
                stories = [Following(**node) for _ in range(3)]
                begun = time.process_time()
                learners = [s.learner(h, f"f{i}") for i, (s, h) in enumerate(zip(stories, team, strict=False))]
                if name.endswith("apart"):
                    for story, learner, h in zip(stories, learners, team, strict=False):
                        h.fit(learner, sources=[story.sources(h, [learner])])
                else:
                    team[3].fit(*learners, sources=[stories[0].sources(team[3], learners)])
                times[name].append(time.process_time() - begun)
            print(f"round {r}: {', '.join(f'{n} {t[-1]:.1f} s' for n, t in times.items())}", flush=True)
        stored = sum(f.stat().st_size for f in (leader.run.path / "answers").rglob("*.safetensors"))
    first, *later = (a / b for a, b in zip(times["live, one pass"], times["stored, one pass"], strict=True))
    apart = [a / b for a, b in zip(times["live, apart"], times["live, one pass"], strict=True)]
    print(f"{epochs} epochs, three followers, {rounds} rounds; CPU time")
    print(f"live / stored, the first time (they are asked and written): {first:.2f}")
    if later:
        print(f"live / stored, found on disk: {statistics.median(later):.2f} ({min(later):.2f}-{max(later):.2f})")
    weights = sum(4 * p.numel() for p in fitted.model.parameters())
    print(f"stored answers take {stored / 1e3:.0f} kB, the leader's weights {weights / 1e6:.0f} MB")
    print(f"three apart / one pass: {statistics.median(apart):.2f} ({min(apart):.2f}-{max(apart):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "speed"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    digits(args.seeds, args.rows) if args.what == "digits" else speed(args.rounds, args.epochs)


if __name__ == "__main__":
    main()
