"""Predictions as a file of tensors, and back: what a stored one may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sftc import positions
from sftc.errors import Refused
from sftc.filed import Part, stretches
from sftc.positions import PER_ROW, Positions, Said
from sftc.store.files import write_parts, write_tensors
from sftc.store.reading import read_parts, read_shapes, read_tensors
from sftc.types import Predictions


def write(path: Path, p: Said, meta: Mapping[str, str]) -> None:
    """Raises Stopped: the disk does not take it."""
    if isinstance(p, Positions):
        write_parts(path, p.parts, {**meta, "classes": str(p.classes)})
    else:
        write_tensors(path, {"scores": p.scores, "target": p.target, "row": p.row}, meta)


def read(path: Path, meta: Mapping[str, str]) -> Said:
    """Those of millions of positions stay in the file, and are read from it as they are asked for.

    Raises:
        Refused: the file is no predictions, or what it holds does not fit together.
    """
    many = "counts" in read_shapes(path) and path.stat().st_size > positions.HELD
    t: dict[str, Any] = read_parts(path) if many else read_tensors(path)
    if {"target", "rows", "counts"} <= t.keys() and ("scores" in t or {"top", "which"} <= t.keys()):
        t |= {name: t[name][:] for name in PER_ROW if t[name].ndim}
        if not _whole(t, meta.get("classes", "")):
            raise Refused(f"{path}: the scores of positions, their targets and rows do not fit together")
        return Positions(t, int(meta["classes"]))
    if not {"scores", "target", "row"} <= t.keys():
        raise Refused(f"{path} holds no predictions")
    p = Predictions(t["scores"], t["target"], t["row"])
    whole = p.scores.ndim == 2 and p.scores.is_floating_point() and p.row.dtype == torch.int64 and p.row.ndim == 1
    if not whole or not len(p.scores) == len(p.row) == p.target.shape[:1].numel():
        raise Refused(f"{path}: scores, target and row do not fit together")
    return p


def _whole(t: Mapping[str, Any], classes: str) -> bool:
    target, rows, counts = t["target"], t["rows"], t["counts"]
    if not classes.isdecimal() or target.dtype != torch.uint8 or not target.ndim == rows.ndim == counts.ndim == 1:
        return False
    n, c = len(target), int(classes)
    if rows.dtype != torch.int64 or counts.dtype != torch.int64 or len(rows) != len(counts):
        return False
    if (counts < 0).any() or (counts > n).any() or int(counts.sum()) != n or _largest(target) >= c:
        return False
    if "scores" in t:
        return t["scores"].dtype == torch.float16 and t["scores"].shape == (n, c)
    top, which = t["top"], t["which"]
    shaped = top.ndim == 2 and top.shape == which.shape and len(top) == n and top.shape[1] < c
    return shaped and top.dtype == torch.float16 and which.dtype == torch.uint8 and _largest(which) < c


def _largest(part: Part) -> int:
    return max((int(some.max()) for some in stretches(part) if some.numel()), default=-1)
