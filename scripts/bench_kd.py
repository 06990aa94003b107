"""Distillation side by side with its alternatives: what it costs, what it brings, and what few views lose.

python scripts/bench_kd.py speed                                # CPU-seconds against a bare loop, timm, torchdistill
python scripts/bench_kd.py students --of digits                 # test accuracy of students taught in several ways
python scripts/bench_kd.py students --of mnist data.root=FOLDER
python scripts/bench_kd.py views --of mnist data.root=FOLDER    # data.views=K with stored answers, against live

Process CPU time on one thread: the wall clock of a shared machine says little.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_loop import cpu_seconds, make_lab, tensors
from scipy import stats
from torch import Tensor, nn

from sftc.build import parts
from sftc.build.bench import Bench
from sftc.device import Device
from sftc.lab import Lab
from sftc.objective import Learner
from sftc.store import Run, hash_tensors

Loss = Callable[[Tensor, Tensor], Tensor]

# Speed

SPEED = """Images per CPU-second, one thread, batch 64, 32 x 32 RGB, fused AdamW; median (min-max) of {n} rounds.
  live      lab.fit of one epoch with a live teacher: set-up, training, validation on 1 % as many rows, checkpoint
  bare      ten lines: both forwards, cross-entropy, KL, backward, step, on rows held in memory; nothing else
  timm      the same loop around timm.task.LogitDistillationTask
  torchdistill  the same loop around its DistillationBox
  cached    lab.fit with crop, flip and data.views=4, the teacher's answers stored before
  plain     the same without a teacher
live and those beside it augment nothing. A ratio above 1 says that sftc is faster. Goals: live / bare 0.98, cached /
plain 0.95."""
ALPHA, HEAT = 0.5, 4.0
PAIRS = {  # student, teacher, rows: an epoch of a few CPU-seconds
    "resnet20 -> resnet8": ("model=cifar model.name=resnet8", "model=cifar model.name=resnet20", 1600),
    "wide_cnn -> simple_cnn": ("model=simple_cnn", "model=wide_cnn", 3200),
}
SUBJECTS = ("live", "bare", "timm", "torchdistill", "cached", "plain")
AGAINST = {"live": ("bare", "timm", "torchdistill"), "cached": ("plain", "live")}
MOVED = ("data.augment.crop=4", "data.augment.flip=0.5")


def bare(model: nn.Module, loss: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """The loop everybody writes, with the update rule and parameter groups of sftc."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.ndim > 1], "weight_decay": 0.01}]
    groups += [{"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, fused=True)
    model.train()
    for x, y in batches:
        value = loss(x, y)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()


def by_hand(student: nn.Module, teacher: nn.Module) -> Loss:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            p = F.log_softmax(teacher(x) / HEAT, 1)
        z = student(x)
        soft = F.kl_div(F.log_softmax(z / HEAT, 1), p, reduction="batchmean", log_target=True)
        return ALPHA * F.cross_entropy(z, y) + (1 - ALPHA) * HEAT**2 * soft

    return loss


def by_timm(student: nn.Module, teacher: nn.Module) -> Loss | None:
    try:
        from timm.task import DistillationTeacher, LogitDistillationTask
    except ImportError:
        return None
    # Both nets normalise their own input; the task's own is switched off by the same numbers on both sides.
    student.pretrained_cfg = teacher.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore
    more = {"task_loss_weight": ALPHA, "temperature": HEAT, "verbose": False}
    task = LogitDistillationTask(student, DistillationTeacher(teacher), nn.CrossEntropyLoss(), **more)
    return lambda x, y: task(x, y)["loss"]


def by_torchdistill(student: nn.Module, teacher: nn.Module) -> Loss | None:
    try:
        from torchdistill.core.distillation import DistillationBox
    except ImportError:
        return None
    place = {"module_path": ".", "module_io": "output"}
    at = {f"{who}_{key}": word for who in ("student", "teacher") for key, word in place.items()}
    kd = {"key": "KDLoss", "kwargs": {**at, "temperature": HEAT, "alpha": ALPHA}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
    box = DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1)
    return lambda x, y: box.forward_process(x, y)


LOSSES = {"bare": by_hand, "timm": by_timm, "torchdistill": by_torchdistill}


class Match:
    """A student, its teacher and their data; each subject trains one epoch on as many rows."""

    def __init__(self, student: str, teacher: str, rows: int, folder: Path) -> None:
        data = ["data=fake", f"data.count={rows * 102 // 100}", "data.size=32", "data.channels=3", "data.workers=0"]
        data += ["data.test_share=0.0098", "data.val_share=0.0098", "epochs=1"]
        self.folder, self.runs, self.base = folder, 0, [*data, "schedule=constant", "schedule.warmup=0"]
        self.bench = Bench(Device("cpu", threads=1))  # makes the data once for all labs
        self.student = student.split()
        home = self.lab(*teacher.split())
        home.keep(home.fit(home.model())[0])
        self.teacher = home.run.path
        self.images, self.labels = tensors(home, "train")

    def lab(self, *more: str) -> Lab:
        self.runs += 1
        return make_lab(self.folder / str(self.runs), *self.base, *more, bench=self.bench)

    def taught(self, outputs: str, *more: str) -> tuple[Lab, Learner]:
        """What strategy=kd gives to `fit`; a teacher of random pictures knows nothing."""
        names = [f"strategy.teachers=[{self.teacher}]", "strategy.allow_weak=true", "model@strategy.teacher=mlp"]
        names += [f"strategy.teacher_outputs={outputs}", f"strategy.alpha={ALPHA}", f"strategy.temperature={HEAT}"]
        lab = self.lab("strategy=kd", *self.student, *names, *more)
        kd = parts.strategy(lab.run.config)
        return lab, kd._learner(lab, lab, kd._admitted(lab, kd._paths(lab)))

    def take(self, subject: str) -> float | None:
        """CPU-seconds of an epoch of this subject, made ready beforehand; None: it is not installed."""
        if subject in ("live", "cached"):
            lab, learner = self.taught(subject, *(("data.views=4", *MOVED) if subject == "cached" else ()))
            return cpu_seconds(lambda: lab.fit(learner))
        lab = self.lab(*self.student, *(MOVED if subject == "plain" else ()))
        model = lab.model()
        if subject == "plain":
            return cpu_seconds(lambda: lab.fit(model))
        loss = LOSSES[subject](model, self.frozen())
        if loss is None:
            return None
        order = torch.randperm(len(self.labels)).split(64)
        return cpu_seconds(lambda: bare(model, loss, ((self.images[i], self.labels[i]) for i in order)))

    def frozen(self) -> nn.Module:
        return self.bench.open(self.teacher).restore().requires_grad_(False).eval()

    def same(self, steps: int = 20) -> tuple[float, bool]:
        """Largest difference to the bare loop's weights after steps on the same batches; is the teacher as it was?"""
        lab, learner = self.taught("live", f"max_steps={steps}")
        (live,) = learner.teachers
        before = hash_tensors(live.own.state_dict())  # type: ignore[attr-defined]
        start = {k: v.clone() for k, v in learner.student.state_dict().items()}
        (fitted,) = lab.fit(learner)
        model = lab.model()
        model.load_state_dict(start)
        batches = itertools.islice(lab.source("train", train=True).epoch(0), steps)
        bare(model, by_hand(model, self.frozen()), ((b.inputs, b.target) for b in batches))  # type: ignore[misc]
        ours, theirs = fitted.last_state, model.state_dict()
        gap = max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in theirs)
        return gap, hash_tensors(live.own.state_dict()) == before  # type: ignore[attr-defined]


def speed(repeats: int) -> None:
    print(SPEED.format(n=repeats), flush=True)
    for name, (student, teacher, rows) in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            match, timed = Match(student, teacher, rows, Path(folder)), {subject: [] for subject in SUBJECTS}
            gap, still = match.same()
            print(f"  {name}: after 20 equal steps weights differ by {gap:.1e} at most; teacher unchanged: {still}")
            once = cpu_seconds(lambda: match.taught("cached", "data.views=4", *MOVED))
            print(f"  {name}: admission and the answers to 4 views of {len(match.labels)} rows: {once:.2f} CPU-s, once")
            for i in range(repeats):
                for subject in SUBJECTS[i % 6 :] + SUBJECTS[: i % 6]:
                    timed[subject].append(match.take(subject))
            count = len(match.labels)
        for subject, seconds in timed.items():
            if None in seconds:
                print(f"  {name:<23} {subject:<12} not installed")
                continue
            rates = _spread([count / s for s in seconds], ".0f")
            ratios = (
                f"  {subject} / {other} {_spread([b / a for a, b in zip(seconds, timed[other], strict=True)], '.3f')}"
                for other in AGAINST.get(subject, ())
                if None not in timed[other]
            )
            print(f"  {name:<23} {subject:<12} {rates} images/s  n={repeats}{''.join(ratios)}", flush=True)


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


# Accuracy

QUIET = ("checkpoint.epochs=null",)
PEERS = ("strategy.peers=2", "strategy.alpha=0.5", "strategy.temperature=1.0")  # as Zhang et al. 2018


def trained(folder: Path, bench: Bench, *overrides: str) -> Run:
    """The finished run of `sftc train` with these overrides; teachers are shared in `bench.shared`."""
    lab = make_lab(folder, *QUIET, *overrides, bench=bench)
    parts.strategy(lab.run.config).run(lab)
    return lab.run


def students(base: list[str], seeds: int) -> None:
    """The preset's student, taught in several ways: the same first weights, labels and number of steps."""
    found: dict[str, list[float]] = {}
    chosen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Device("cpu", threads=1), shared=Path(folder) / "shared")
        for seed in range(seeds):
            taught = trained(Path(folder) / f"kd{seed}", bench, *base, f"seed={seed}", "strategy.baseline=true")
            scores = {row["name"]: (row["val"], row["test"]) for row in taught.result["team"]}
            # All rows of train, and of their labels those that the others know; none is asked of the teacher twice.
            ways = {"student, unlabelled rows too": _unlabelled(taught, bench), "peers, no teacher": PEERS}
            for name, way in ways.items():
                run = trained(Path(folder) / f"{name}{seed}", bench, *base, f"seed={seed}", *way)
                scores[name] = (run.result["val"], run.result["test"])
            for name, (val, test) in scores.items():
                chosen.setdefault(name, []).append(100 * val["accuracy"])
                found.setdefault(name, []).append(100 * test["accuracy"])
            print(f"  seed {seed}: " + ", ".join(f"{name} {x[-1]:.2f}" for name, x in found.items()), flush=True)
    table("test accuracy (validation beside it)", found, chosen, "baseline")


def _unlabelled(taught: Run, bench: Bench) -> tuple[str, ...]:
    """The same teacher, labels and steps as in `taught`, and all other rows of train besides."""
    cfg = taught.config
    everything = bench.data({**cfg, "data": {**cfg["data"], "limit": None}})
    share = 1 - cfg["data"]["limit"] / len(everything.splits["train"].rows)
    steps = cfg["epochs"] * -(-cfg["data"]["limit"] // cfg["batch_size"])
    teacher = f"strategy.teachers=[{taught.result['teachers'][0]['run']}]"
    warmup = f"schedule.warmup={(1 - share) * cfg['schedule']['warmup']}"  # epochs, and these are longer ones
    return ("data.limit=null", f"data.unlabeled={share}", f"epochs={steps}", f"max_steps={steps}", warmup, teacher)


def table(title: str, found: dict[str, list[float]], beside: dict[str, list[float]], plain: str) -> None:
    """Mean, standard deviation, and the paired difference to `plain` with its 95 % confidence interval."""
    print(f"{title}, {len(found[plain])} seeds; difference to {plain}, paired by seed, 95 % confidence interval")
    for name, values in found.items():
        line = f"  {name:<40} {statistics.mean(values):6.2f} sd {statistics.stdev(values):.2f}"
        line += f"  (val {statistics.mean(beside[name]):6.2f})"
        if name != plain:
            gaps = [a - b for a, b in zip(values, found[plain], strict=True)]
            half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
            line += f"  {statistics.mean(gaps):+.2f} +- {half:.2f}"
        print(line)


# Views


def views(base: list[str], seeds: int) -> None:
    """The same student and teacher, with data.views=K and stored answers, and live with a new view every epoch."""
    counts = {"live": "null", "1": 1, "2": 2, "4": 4, "8": 8}
    found: dict[str, list[float]] = {name: [] for name in counts}
    chosen: dict[str, list[float]] = {name: [] for name in counts}
    seconds: dict[str, list[float]] = {name: [] for name in counts}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Device("cpu", threads=1), shared=Path(folder) / "shared")
        for seed in range(seeds):
            for name, count in counts.items():
                begun = time.process_time()
                run = trained(Path(folder) / f"{name}-{seed}", bench, *base, f"seed={seed}", f"data.views={count}")
                seconds[name].append(time.process_time() - begun)
                found[name].append(100 * run.result["test"]["accuracy"])
                chosen[name].append(100 * run.result["val"]["accuracy"])
            print(f"  seed {seed}: " + ", ".join(f"{name} {x[-1]:.2f}" for name, x in found.items()), flush=True)
    table("views per row, test accuracy", found, chosen, "live")
    for name, spent in seconds.items():
        print(f"  {name:<5} CPU-seconds of a run, answers made when first needed: {[round(s, 1) for s in spent]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "students", "views"])
    parser.add_argument("--of", choices=["digits", "mnist"], default="digits", help="whose preset")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("more", nargs="*", help="further overrides, KEY=VALUE")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    if args.what == "speed":
        speed(args.repeats)
        return
    base = [f"experiment=kd_{args.of}", *args.more]
    (students if args.what == "students" else views)(base, args.seeds)


if __name__ == "__main__":
    main()
