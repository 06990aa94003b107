"""Source -> target: a trained model's first blocks are kept, the rest grows anew and learns the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftc import columns
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.models.surgery import blocks, in_range, keep_first, kept
from sftc.objective import Learner
from sftc.strategies import following
from sftc.strategies.sources import grown


class Transfer:
    """A leader by itself, as strategy=leader makes it: a member that can be gone on with alone.

    Args:
        source: run folder of the model it begins with.
        keep: how many of its first blocks; `finetune` says how fast they go on learning.
        fold, folds: validate on this part of the training rows, and learn from the others.
    """

    def __init__(self, source: str, keep: int, fold: int | None = None, folds: int = 1) -> None:
        self.source = source
        self.keep = keep
        self.fold = fold
        self.folds = folds

    def node(self) -> dict[str, Any]:
        """The strategy node of its run."""
        split = {} if self.fold is None else {"fold": self.fold, "folds": self.folds}
        return {"name": "transfer", "source": self.source, "keep": self.keep, **split}

    def learner(self, lab: Lab, name: str = "student", **more: Any) -> Learner:
        """The model as it starts on the target. Raises Refused: the source is of another form."""
        if lab.run.reference("source") is None:
            lab.run.refer("source", lab.open(self.source).run.path)
        home = lab.open(str(lab.run.reference("source")))
        if said := columns.other(lab.facts.form.about, home.facts.form.about):
            raise Refused(f"source {home.run.path} learned another table, and its weights go by place: {said}")
        return lab.learner(keep_first(home.restore(), lab.model(), self.keep), name=name, **more)

    def run(self, lab: Lab) -> None:
        if not lab.run.finished:
            val = None if self.fold is None else split(lab, self.folds)[self.fold]
            (fitted,) = lab.fit(self.learner(lab), rows=None if val is None else without(lab, val), val_rows=val)
            lab.keep(fitted)


def split(lab: Lab, folds: int) -> list[Tensor]:
    """The training rows in so many parts, every class spread evenly over them; the run's seed moves none."""
    part = lab.data.splits["train"]
    draw = torch.Generator().manual_seed(lab.data.split_seed)
    rows = part.rows[torch.randperm(len(part.rows), generator=draw)]
    target = part.target[rows]
    if target.ndim == 1 and not target.is_floating_point():
        rows = rows[target.argsort(stable=True)]
    return [rows[i::folds].sort().values for i in range(folds)]


def without(lab: Lab, some: Tensor) -> Tensor:
    rows = lab.data.splits["train"].rows
    return rows[~torch.isin(rows, some)]


def kept_of(
    source: dict[str, Any], target: dict[str, Any], keep: int | str, facts: Any, what: str, learned: Any = None
) -> int:
    """How many first blocks of `source` `keep` means for `target`, which may have another head; auto: the most.

    Args:
        source, target: model nodes.
        facts: of the target's data.
        what: `keep` as it is typed, for the message.
        learned: facts of the source's data, where it has its own.

    Raises:
        Refused: no such block, or one that goes with the head, or that has another shape in the source.
    """
    model, theirs = following.built(target, facts), following.built(source, learned or facts)
    pairs = list(zip(blocks(model)[:-1], blocks(theirs)[:-1], strict=False))
    shared = next((i for i, (a, b) in enumerate(pairs) if set(a[1]) != set(b[1])), len(pairs))
    n = shared if keep == "auto" else kept(model, keep, what)
    in_range(n, len(blocks(model)), what)
    if n > shared:
        head = target.get("head", "linear")
        raise Refused(f"{what}={keep}: with head={head} the first {shared} blocks are the source's, no more")
    keep_first(theirs, model, n)
    return n


def best_source(lab: Lab, name: str, paths: list[str], entry: dict[str, Any], optim: dict[str, Any]) -> str:
    """Of several sources the one on whose last layer a new head learns the target best, by validation."""
    scores = {}
    for i, path in enumerate(paths):
        model = grown(lab, lab.open(path))
        n = len(blocks(following.built(model, lab.facts))) - 1
        epochs = {} if entry["probe_epochs"] is None else {"epochs": entry["probe_epochs"]}
        story = Transfer(path, n)
        groups = {"model": model, "finetune": {"name": "head"}, "optim": optim, "strategy": story.node(), **epochs}
        home = lab.fork(f"{name}-probe{i}", **groups)
        story.run(home)
        scores[path] = home.run.result["val"][lab.task.monitor]
    sign = 1 if lab.task.maximize else -1
    ranked = sorted(scores, key=lambda path: -sign * scores[path])
    head = f"sources of {name} by {lab.task.monitor} of a new head on validation:"
    lab.watch.say("\n".join([head, *(f"  {scores[path]:.4f}  {path}" for path in ranked)]))
    return ranked[0]


def best_keep(
    lab: Lab, name: str, path: str, entry: dict[str, Any], groups: dict[str, Any], most: int
) -> tuple[int, list[dict[str, float]]]:
    """How many blocks to keep, up to `most`, by cross-validation on the training rows; of equals the most.

    Returns:
        The number, and for each candidate the mean and the deviation of the folds' last scores.
    """
    table = []
    for n in range(1, most + 1):
        scores = []
        for fold, val in enumerate(split(lab, entry["folds"])):
            story = Transfer(path, n, fold, entry["folds"])
            finetune = {"name": "first_n", "n": n, "keep_lr": entry["keep_lr"]}
            more = {**groups, "finetune": finetune, "strategy": story.node()}
            home = lab.fork(f"{name}-keep{n}-fold{fold}", rows=without(lab, val), **more)
            story.run(home)
            # Of the last epoch: the best one was chosen on the very rows it is scored on.
            scores.append(home.run.result["last"]["val"][lab.task.monitor])
        spread = torch.tensor(scores, dtype=torch.float64)
        table.append({"keep": n, "mean": float(spread.mean()), "std": float(spread.std())})
    sign = 1 if lab.task.maximize else -1
    best = max(table, key=lambda row: (sign * row["mean"], row["keep"]))
    head = f"{name}: {lab.task.monitor} by first blocks kept, {entry['folds']} folds:"
    lines = [f"  {row['keep']:2}  {row['mean']:.4f} +- {row['std']:.4f}" + " *" * (row is best) for row in table]
    lab.watch.say("\n".join([head, *lines]))
    return int(best["keep"]), table
