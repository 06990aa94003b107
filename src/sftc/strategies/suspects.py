"""What an ensemble of folds says about the labels: the fold that left a row out may contradict its label."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch

from sftc.fusion.suspects import Suspects, suspects
from sftc.lab import Lab
from sftc.strategies.heldout import of_folds
from sftc.strategies.members import Unit

FILE = "suspects.csv"
SHOWN = 5


def note(lab: Lab, units: Sequence[Unit]) -> None:
    """Write suspects.csv and say the first few: training rows whose label the folds that had not seen it contradict.

    Of classes, one answer a row; anything else has no such list.
    """
    split = lab.data.splits["train"]
    target = split.target[split.rows]
    if lab.run.finished or lab.facts.kind != "classes" or not all(u.folds for u in units):
        return
    found = suspects(torch.stack([of_folds(lab, unit) for unit in units]).mean(0), target)
    lines = _lines(lab, found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("row", "what", "label", "likely", "p_label", "p_likely"), *lines])
    lab.run.write_page(FILE, text.getvalue())
    of = int((target >= 0).sum())
    lab.watch.say(f"{len(found)} of {of:,} training labels are doubted by models that had not seen them: {FILE}")
    for row, what, label, likely, given, other in lines[:SHOWN]:
        lab.watch.say(f"  row {row}{what and f' {what}'}: labelled {label} ({given}), likely {likely} ({other})")


def _lines(lab: Lab, found: Suspects) -> list[tuple[int, str, str, str, str, str]]:
    split, names = lab.data.splits["train"], lab.facts.class_names
    describe = getattr(split.table, "describe", lambda row: "")
    rows = split.rows[found.row].tolist()
    labels, likely = ([names[i] for i in t.tolist()] for t in (found.label, found.likely))
    given, other = ([f"{p:.3f}" for p in t.tolist()] for t in (found.given, found.other))
    return list(zip(rows, map(describe, rows), labels, likely, given, other, strict=True))
