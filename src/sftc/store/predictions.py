"""Predictions as tensors by name, and back: what a stored file may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.positions import Positions, Said
from sftc.types import Predictions


def tensors(p: Said) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is written, and what of it no tensor says."""
    if isinstance(p, Positions):
        return p.parts, {"classes": str(p.classes)}
    return {"scores": p.scores, "target": p.target, "row": p.row}, {}


def read(path: Path, t: Mapping[str, Tensor], meta: Mapping[str, str]) -> Said:
    """Raises Refused: the tensors are no predictions, or do not fit together."""
    if {"target", "rows", "counts"} <= t.keys() and ("scores" in t or {"top", "which"} <= t.keys()):
        if not _whole(t, meta.get("classes", "")):
            raise Refused(f"{path}: the scores of positions, their targets and rows do not fit together")
        return Positions(dict(t), int(meta["classes"]))
    if not {"scores", "target", "row"} <= t.keys():
        raise Refused(f"{path} holds no predictions")
    p = Predictions(t["scores"], t["target"], t["row"])
    whole = p.scores.ndim == 2 and p.scores.is_floating_point() and p.row.dtype == torch.int64 and p.row.ndim == 1
    if not whole or not len(p.scores) == len(p.row) == p.target.shape[:1].numel():
        raise Refused(f"{path}: scores, target and row do not fit together")
    return p


def _whole(t: Mapping[str, Tensor], classes: str) -> bool:
    target, rows, counts = t["target"], t["rows"], t["counts"]
    if not classes.isdecimal() or target.dtype != torch.uint8 or not target.ndim == rows.ndim == counts.ndim == 1:
        return False
    n, c = len(target), int(classes)
    if rows.dtype != torch.int64 or counts.dtype != torch.int64 or len(rows) != len(counts):
        return False
    if (counts < 0).any() or int(counts.sum()) != n or (n and int(target.max()) >= c):
        return False
    if "scores" in t:
        return t["scores"].dtype == torch.float16 and t["scores"].shape == (n, c)
    top, which = t["top"], t["which"]
    shaped = top.ndim == 2 and top.shape == which.shape and len(top) == n and top.shape[1] < c
    return shaped and top.dtype == torch.float16 and which.dtype == torch.uint8 and not (n and int(which.max()) >= c)
