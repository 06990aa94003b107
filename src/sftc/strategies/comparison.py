"""How a student stands beside its teachers and the others of its run: for the table at the end and result.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sftc import fusion
from sftc.lab import Lab
from sftc.lab.results import Found
from sftc.positions import sampled
from sftc.types import Metrics, Predictions, Task

if TYPE_CHECKING:
    from sftc.strategies.teachers import Taught

NAMED = 20  # rows of a disagreement that are listed


def candidates(taught: list[Taught], task: Task) -> str:
    """A line per teacher, the best first."""
    name = task.monitor
    ranked = sorted(taught, key=lambda t: t.metrics[name], reverse=task.maximize)
    lines = [f"  {t.metrics[name]:.4f}  {t.params:>12,}  {t.name}  {t.path}" for t in ranked]
    return "\n".join([f"teachers by {name} on validation, with their parameters:", *lines])


def of(lab: Lab, student: nn.Module, found: Found, taught: list[Taught], others: dict[str, Lab]) -> dict[str, Any]:
    """`team`: a row for each model. `disagreement`: where student and teachers differ on validation."""
    scored = {split: metrics for split, (_, metrics) in found.items()}
    rows = [row(lab, f"teacher {t.name}", t.live.model, t.path, _teachers(lab, t, list(found))) for t in taught]
    rows.append(row(lab, "student", student, lab.run.path, scored))
    for name, home in others.items():
        result = home.run.result
        rows.append(row(lab, name, home.restore(), home.run.path, {s: result[s] for s in found}))
    out: dict[str, Any] = {"team": rows}
    if taught:
        scores = torch.stack([sampled(t.val).scores for t in taught]).mean(0)
        out["teachers"] = [{"run": t.path, "model": t.hash, "remarks": t.remarks} for t in taught]
        out["disagreement"] = disagreement(lab, sampled(found["val"][0]), scores)
    return out


def members(
    lab: Lab, leaders: dict[str, Lab], followers: dict[str, Lab], scratch: dict[str, Lab], splits: list[str]
) -> dict[str, Any]:
    """`team`: a row for each member, and one for the fused scores of those with the run's task.

    `gain`: of leaders over the same model from scratch.
    """
    homes = {**leaders, **followers}
    rows = [
        row(lab, name, home.restore(), home.run.path, {s: home.run.result[s] for s in splits})
        for name, home in {**scratch_names(scratch), **homes}.items()
    ]
    same = {name for name, home in homes.items() if home.run.config["data"] == lab.run.config["data"]}
    if len(same) > 1:
        metrics = {
            s: _fused(lab, [sampled(homes[name].run.predictions(s)[0]) for name in homes if name in same])
            for s in splits
        }
        total = {k: sum(r[k] for r in rows if r["name"] in same) for k in ("params", "ms_per_row")}
        rows.append({"name": "team, mean", "run": ".", **total, **metrics})
    return {"team": rows, "gain": gains(lab, leaders, scratch)[0]}


def scratch_names(scratch: dict[str, Lab]) -> dict[str, Lab]:
    return {f"{name} from scratch": home for name, home in scratch.items()}


def gains(lab: Lab, leaders: dict[str, Lab], scratch: dict[str, Lab]) -> tuple[dict[str, Metrics], list[str]]:
    """By how much leaders are better than the same from scratch, by split; and a line for each that is not."""
    found, lines, monitor = {}, [], lab.task.monitor
    for name, home in scratch.items():
        ours, theirs = leaders[name].run.result, home.run.result
        sign = 1 if lab.task.maximize else -1
        found[name] = {s: sign * (ours[s][monitor] - theirs[s][monitor]) for s in lab.data.splits if s in ours}
        if found[name]["val"] < 0:
            lines.append(
                f"negative transfer: {name} is worse than the same model from scratch on validation "
                f"({monitor} {ours['val'][monitor]:.4f} against {theirs['val'][monitor]:.4f})"
            )
    return found, lines


def _fused(lab: Lab, said: list[Predictions]) -> Metrics:
    """Metrics of the members' mean scores."""
    meter = lab.task.meter()
    scores = fusion.make("mean", lab.task).apply(torch.stack([p.scores for p in said]))
    meter.update(lab.task.logits(scores), said[0].target, row=said[0].row)
    return meter.compute()


def _teachers(lab: Lab, taught: Taught, splits: list[str]) -> dict[str, Metrics]:
    return {s: taught.metrics if s == "val" else lab.measure(taught.live.model, s, keep=False)[1] for s in splits}


def row(lab: Lab, name: str, model: nn.Module, run: str | Path, metrics: dict[str, Metrics]) -> dict[str, Any]:
    """A line of the table: its metrics by split, its size and how long it takes."""
    params = sum(p.numel() for p in model.parameters())
    run = os.path.relpath(run, lab.run.path)
    return {"name": name, "run": run, "params": params, "ms_per_row": lab.milliseconds(model), **metrics}


def disagreement(lab: Lab, student: Predictions, teachers: Tensor) -> dict[str, Any]:
    """Who is right where they differ, and the rows on which they differ most surely."""
    task, target = lab.task, student.target
    agreed = task.agreement(student.scores, teachers)
    out: dict[str, Any] = {"agreement": float(agreed.double().mean())}
    if "classes" not in task.offers:
        return out
    mine, theirs = student.scores.argmax(1), teachers.argmax(1)
    differ = (mine != theirs) & (target >= 0)
    out |= {
        "rows": int(differ.sum()),
        "only_student_right": int((differ & (mine == target)).sum()),
        "only_teacher_right": int((differ & (theirs == target)).sum()),
    }
    names = lab.facts.class_names
    sure = (student.scores.amax(1) + teachers.amax(1)) * differ
    first = sure.argsort(descending=True, stable=True)[: min(NAMED, int(differ.sum()))]
    out["surest"] = [
        {
            "row": int(student.row[i]),
            "label": names[int(target[i])],
            "student": names[int(mine[i])],
            "teacher": names[int(theirs[i])],
        }
        for i in first.tolist()
    ]
    return out
