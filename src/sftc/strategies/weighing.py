"""What may be fused, what each voice is worth, and why: the tables of a fused run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion import compare, why
from sftc.lab import Lab, teams
from sftc.positions import Positions, Said
from sftc.strategies.members import Unit
from sftc.types import Metrics, Task

if TYPE_CHECKING:
    from sftc.strategies.fusing import Outcome, Voice

MOST_LEFT_OUT = 30  # members; of more, leaving out each in turn takes longer than it tells


def check(lab: Lab, units: list[Unit], leaks: bool) -> None:
    """Each unit is finished and of this run's classes, and none has learned from validation rows.

    Raises:
        Refused: naming the culprit.
    """
    names = lab.facts.class_names
    for home in (home for unit in units for home in unit.homes):
        path, theirs = home.run.path, home.facts
        if not home.run.finished:
            state = home.run.status.get("state")
            raise Refused(f"member {path} is not finished ({state}); finish it: sftc train resume={path}")
        if theirs.kind != lab.facts.kind:
            raise Refused(f"member {path} learned {theirs.kind}, the others {lab.facts.kind}; leave it out of runs=")
        if theirs.class_names != names:
            other = next((c for c in theirs.class_names if c not in names), None)
            how = f"it knows {other}, the first does not" if other else "in another order or fewer"
            raise Refused(f"member {path} has other classes than the first ({how}); leave it out of runs=")
        teams.expect_flat(home.run, around=1)
    if not leaks:
        _refuse_leaks(units)
    if len(units) == 1:
        lab.watch.say(f"one member only ({units[0].name}): nothing is fused, and nothing can be gained")


def _refuse_leaks(units: list[Unit]) -> None:
    """Members that learned from the rows the rule is fitted on would be believed too much."""
    first = units[0].homes[0].run
    val, table = first.rows_of("val"), first.rows_meta().get("val_table")  # of a val/ folder, not that of train
    for home in (home for unit in units for home in unit.homes):
        rows, mark = home.run.rows_of("train"), home.run.rows_meta()
        if rows is None or val is None or table is None or mark.get("table") != table:
            continue
        seen = int(torch.isin(val, rows).sum())
        if seen:
            raise Refused(
                f"member {home.run.path} was trained on {seen} of the {len(val)} validation rows "
                "(another data.split_seed?); leave it out of runs=, or set leaks=true"
            )


def splits(results: list[dict[str, Any]]) -> list[str]:
    """The splits that all these runs were scored on."""
    return [s for s in ("val", "test") if all(s in result for result in results)]


def predictions(lab: Lab, home: Lab, prints: dict[str, str], split: str) -> tuple[Said, dict[str, str]]:
    """What a run says of a split: as stored if that is about its weights and its data, `prints`, else computed now."""
    run = home.run
    try:
        found, mark = run.predictions(split)
        other = next((what for what in ("model", "data") if mark.get(what) != prints.get(what)), None)
        if other is None:
            return found, mark
        of = "weights" if other == "model" else "data"
        lab.watch.say(f"{run.path}: the predictions of {split} are of other {of}; computing them again")
    except Refused:
        lab.watch.say(f"{run.path}: no predictions of {split}; computing them")
    data = lab.data
    known, now = run.rows_meta().get("table"), data.splits["train"].table.fingerprint()
    if known is not None and known != now and _same_source(lab, home):
        raise Refused(
            f"the data of member {run.path} have changed since it was trained, and its predictions of {split} are "
            "missing or of other data; leave it out of runs=, or train it again"
        )
    mark = {"model": prints["model"], "data": data.fingerprint, "split": data.splits[split].fingerprint()}
    return lab.predict(lab.teacher(home).model, split), mark


def _same_source(a: Lab, b: Lab) -> bool:
    """Whether two runs read one data set in one form: then the same rows must have the same content."""
    one, two = (home.run.config["data"] for home in (a, b))
    return one["name"] == two["name"] and a.facts.shape == b.facts.shape


def comparable(voices: list[Voice]) -> None:
    """Raises Refused: predictions of other rows, targets or contents, naming whose."""
    first = voices[0]
    for voice in voices[1:]:
        for split, mine in first.found.items():
            theirs = voice.found.get(split)
            if theirs is None or theirs.scores.shape != mine.scores.shape or not torch.equal(theirs.row, mine.row):
                raise Refused(
                    f"member {voice.unit.name} has scores of other {split} rows than {first.unit.name}: "
                    "they need the same data, limits and split_seed"
                )
            if not torch.equal(torch.nan_to_num(theirs.target), torch.nan_to_num(mine.target)):
                raise Refused(f"member {voice.unit.name} has other targets in {split} than {first.unit.name}")
            prints = [v.marks[split].get("split") for v in (first, voice)]
            if None not in prints and len(set(prints)) > 1 and _same_source(first.unit.homes[0], voice.unit.homes[0]):
                a, b = first.unit.name, voice.unit.name
                raise Refused(
                    f"the data changed between {a} and {b}: the same {split} rows had other content when {b} was "
                    "scored; train one of them again"
                )


def scored(task: Task, p: Said) -> Metrics:
    """Metrics of stored scores."""
    meter = task.meter(full=False)
    for _, some in p.pieces() if isinstance(p, Positions) else [(None, p)]:
        meter.update(task.logits(some.scores), some.target, row=some.row)
    return meter.compute()


def cost(metrics: Metrics) -> float:
    """What fusion is judged by, the less the better: NLL, or the RMSE of values. Accuracy alone is blind to both."""
    return metrics["nll"] if "nll" in metrics else metrics["rmse"]


def row(lab: Lab, voice: Voice) -> dict[str, Any]:
    """A member's line in the table."""
    metrics = {s: scored(lab.task, p) for s, p in (voice.found | voice.whole).items()}
    where = str(voice.unit.homes[0].run.path)
    return {"name": voice.unit.name, "run": where, "params": voice.params, "ms_per_row": voice.ms, **metrics}


def tables(lab: Lab, voices: list[Voice], outcomes: list[Outcome], best: Outcome) -> dict[str, Any]:
    """result.json: `team` (a line for each voice and rule), `fused` (against the best single), `members` (why each)."""
    rows = [row(lab, voice) for voice in voices]
    single = min(range(len(voices)), key=lambda i: cost(rows[i]["val"]))
    alone, gains = voices[single].found, {}
    for split, base in alone.items():
        gains[split] = compare.against(
            lab.task, [o.found[split].scores for o in outcomes], base.scores, base.target, row=base.row
        )
    for i, outcome in enumerate(outcomes):
        used = _used(outcome, len(voices))
        size = {k: sum(rows[j][k] for j in used) for k in ("params", "ms_per_row")}
        gain = {split: gains[split][i] for split in gains}
        line = {"name": f"fuse {outcome.rule}", "members": len(used), **size, **outcome.metrics, "gain": gain}
        rows.append({**line, "temperature": outcome.temperature})
    chosen = rows[len(voices) + outcomes.index(best)]
    return {
        "team": rows,
        "fused": {"rule": best.rule, "best_single": voices[single].unit.name, "gain": chosen["gain"]},
        "members": reasons(lab.task, voices, best, single),
        "params": chosen["params"],
        "ms_per_row": chosen["ms_per_row"],
        "model": {"family": "fused", "name": best.rule, "members": chosen["members"]},
    }


def reasons(task: Task, voices: list[Voice], best: Outcome, single: int) -> dict[str, Any]:
    """Why each member: what the team gains by it, how it differs from the others, whom the fusion helps and harms."""
    scores = [v.found["val"].scores for v in voices]
    target = voices[0].found["val"].target
    out: dict[str, Any] = {
        "names": [v.unit.name for v in voices],
        "disagreement": why.disagreement(task, scores).tolist(),
        "error_correlation": why.error_correlation(task, scores, target).tolist(),
    }
    if not any(best.taps) and len(voices) <= MOST_LEFT_OUT:
        out["leave_one_out"] = {
            k: v.tolist() for k, v in why.leave_one_out(best.make, torch.stack(scores), target, folds=0).items()
        }
    each = why.per_class(task, best.found["val"].scores, scores[single], target)
    out["per_class"] = {k: v.tolist() for k, v in each.items()}
    return out


def _used(outcome: Outcome, count: int) -> list[int]:
    weights: Tensor | None = outcome.pooling.weights()
    return list(range(count)) if weights is None else [i for i in range(count) if float(weights[i]) != 0]
