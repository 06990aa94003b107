"""What members say of rows they did not learn from, and which of them were chosen on the rows they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sftc import fusion
from sftc.lab import Lab
from sftc.strategies import weighing
from sftc.strategies.members import Unit
from sftc.types import Predictions

if TYPE_CHECKING:
    from sftc.strategies.fusing import Voice


def by_folds(lab: Lab, voices: Sequence[Voice]) -> tuple[Tensor, Tensor] | None:
    """Scores of the training answers [M, P, C], each by the fold that did not learn it, if all are folds."""
    if lab.facts.kind == "pixels" or not all(v.unit.folds for v in voices):
        return None
    return torch.stack([of_folds(lab, v.unit) for v in voices]), _answers(lab)[1]


def of_folds(lab: Lab, unit: Unit) -> Tensor:
    """Scores [P, C] of the training rows' answers, each by the fold of the unit that did not learn from it."""
    if unit.left_out is None:
        unit.left_out = _beyond(lab, unit.homes, unit.folds or [])
    return unit.left_out


def out_of_bag(lab: Lab, units: Sequence[Unit]) -> dict[str, Any]:
    """`out_of_bag` of result.json, if these are bags: metrics on the training rows that each did not draw.

    `members`: of each alone. `bag`: of the mean over those that did not draw a row; who drew it has no voice there.
    """
    if lab.facts.kind == "pixels" or not all(u.out_of_bag is not None for u in units):
        return {}  # of pixels that would be the scores of all training pixels by all members
    rows, target = _answers(lab)
    scores = torch.stack([_beyond(lab, u.homes, [_rows(u)]) for u in units])
    each = {u.name: _scored(lab, own, target, rows) for u, own in zip(units, scores, strict=True)}
    bag = _scored(lab, fusion.make("mean", lab.task).apply(scores), target, rows)
    return {"out_of_bag": {"bag": bag, "members": each}}


def _rows(unit: Unit) -> Tensor:
    assert unit.out_of_bag is not None
    return unit.out_of_bag


def _scored(lab: Lab, scores: Tensor, target: Tensor, rows: Tensor) -> dict[str, float]:
    """Metrics over the rows that have an answer, and how many these are."""
    there = ~scores.sum(1).isnan()
    found = Predictions(scores[there], target[there], rows[there])
    return {**weighing.scored(lab.task, found), "rows": int(there.sum())}


def _beyond(lab: Lab, homes: Sequence[Lab], held: Sequence[Tensor]) -> Tensor:
    """[P, C] over the training rows' answers: of each home the rows that it is asked about; NaN where nobody is."""
    rows = _answers(lab)[0]
    scores = torch.full((len(rows), lab.task.out_dim), torch.nan)
    for home, own in zip(homes, held, strict=True):
        if len(own):
            found = lab.predict(home.restore(), "train", rows=own)
            scores[torch.isin(rows, found.row)] = found.scores[found.row.argsort(stable=True)]
    return scores


def _answers(lab: Lab) -> tuple[Tensor, Tensor]:
    """Row and target of every answer about the training rows, as predictions hold them: one a row, or the known ones of
    rows with several."""
    split = lab.data.splits["train"]
    rows, target = split.rows, split.target[split.rows]
    if target.ndim == 1 or target.is_floating_point():
        return rows, target
    known = target >= 0
    return rows[known.nonzero()[:, 0]], target[known]


def chosen(units: Sequence[Unit]) -> dict[str, str]:
    """Members that owe their best epoch, or their end, to the rows that fusion is fitted and scored on: name -> how."""
    out: dict[str, str] = {}
    first = units[0].homes[0].run
    val, table = first.rows_of("val"), first.rows_meta().get("val_table")
    for unit in units:
        for home in unit.homes:
            run, mark = home.run, home.run.rows_meta()
            rows = run.rows_of("val")
            apart = val is None or rows is None or mark.get("val_table") != table or not torch.isin(val, rows).any()
            if run.fused:
                how = ", ".join(run.result.get("chosen_on_validation") or {})
                how = how and f"as its {how}"
            elif apart or (mark.get("own_rows") == "true" and unit.folds is None):
                continue  # it was validated on other rows
            else:
                how = _how(run.result)
            if how:
                out[unit.name if len(unit.homes) == 1 else run.path.name] = how
    return out


def _how(result: dict[str, Any]) -> str:
    """What validation decided in a training: "best epoch 3 of 10", "ended by patience"; "" where nothing."""
    best, last = result["best"], result["last"]
    parts = [f"best epoch {best['epoch'] + 1} of {last['epoch'] + 1}"] if best["epoch"] != last["epoch"] else []
    parts += [f"ended by {result['ended']}"] if result["ended"] in ("patience", "target") else []
    return ", ".join(parts)
