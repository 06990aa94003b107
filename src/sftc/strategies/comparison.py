"""How a student stands beside its teachers and the others of its run: for the table at the end and result.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sftc.lab import Lab
from sftc.lab.results import Found
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
    rows = [_row(lab, f"teacher {t.name}", t.live.model, t.path, _teachers(lab, t, list(found))) for t in taught]
    rows.append(_row(lab, "student", student, lab.run.path, scored))
    for name, home in others.items():
        result = home.run.result
        rows.append(_row(lab, name, home.restore(), home.run.path, {s: result[s] for s in found}))
    out: dict[str, Any] = {"team": rows}
    if taught:
        scores = torch.stack([t.val.scores for t in taught]).mean(0)
        out["teachers"] = [{"run": t.path, "model": t.hash, "remarks": t.remarks} for t in taught]
        out["disagreement"] = disagreement(lab, found["val"][0], scores)
    return out


def _teachers(lab: Lab, taught: Taught, splits: list[str]) -> dict[str, Metrics]:
    return {s: taught.metrics if s == "val" else lab.measure(taught.live.model, s)[1] for s in splits}


def _row(lab: Lab, name: str, model: nn.Module, run: str | Path, metrics: dict[str, Metrics]) -> dict[str, Any]:
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
