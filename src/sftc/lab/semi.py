"""Learning from rows without a label: the node `semi` -> terms, second views, and how often labelled rows come."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sftc.data import Augment, Changes, Data
from sftc.errors import Refused
from sftc.losses import Agreeing, Climb, Consistent, Pseudo
from sftc.types import Term

Node = dict[str, Any]


def terms(node: Node) -> dict[str, Term]:
    """What a student minimises besides the terms of its strategy."""
    match node["name"]:
        case "pseudo":
            return {"pseudo": Pseudo(Climb(node["weight"], node["warmup"]), node["threshold"])}
        case "fixmatch":
            return {"fixmatch": Agreeing(node["weight"], node["threshold"])}
        case "mean_teacher":
            return {"mean_teacher": Consistent(Climb(node["weight"], node["warmup"]))}
    return {}


def second(node: Node, data: Data) -> Changes | None:
    """How the second view of a row is made: strongly, or once more as the first; None: there is none."""
    own = data.augment
    if node["name"] == "fixmatch" and isinstance(own, Augment):
        return Augment(crop=own.crop, flip=own.flip, resized_crop=own.resized_crop, **node["strong"])
    return own if node["name"] == "mean_teacher" and own.active else None


def rows(node: Node, data: Data, chosen: Tensor | None) -> Tensor | None:
    """`chosen` source rows (None: all of train) with the labelled ones repeated up to `labelled_share`."""
    if node["name"] == "none" or node["labelled_share"] is None:
        return chosen
    train = data.splits["train"]
    known = _known(train.target)
    some = train.rows if chosen is None else chosen
    labelled, others = some[known[some]], some[~known[some]]
    wanted = math.ceil(node["labelled_share"] / (1 - node["labelled_share"]) * len(others))
    if not len(labelled) or wanted <= len(labelled):
        return chosen
    times = math.ceil(wanted / len(labelled))
    return torch.cat([labelled.repeat(times)[:wanted], others]).sort()[0]


def check(node: Node, data: Data) -> None:
    """Raises Refused: it makes no sense for this data."""
    name = node["name"]
    if name == "none":
        return
    if data.kind not in ("classes", "pixels") and (data.kind, name) != ("values", "mean_teacher"):
        other = "semi=mean_teacher" if data.kind == "values" else "semi=none"
        raise Refused(f"semi={name} is for classes; the data holds {data.kind}: use {other}, or strategy=kd")
    if data.augment.mixes:
        raise Refused(f"semi={name} needs unmixed pictures: set data.augment.mixup=0 and cutmix=0, or semi=none")
    if name == "fixmatch" and data.form.kind != "picture":
        raise Refused("semi=fixmatch augments pictures, which this data does not have; use semi=pseudo")
    if name != "pseudo" and data.kind == "pixels":
        raise Refused(f"semi={name} compares two views of a row, whose pixels lie elsewhere in each; use semi=pseudo")
    train = data.splits["train"]
    if bool(_known(train.target[train.rows]).all()):
        raise Refused(f"semi={name} learns from rows without a label, and all have one; set data.unlabeled=0.9")


def _known(target: Tensor) -> Tensor:
    """[n] bool: rows with a label, at whatever position."""
    known = ~target.isnan() if target.is_floating_point() else target >= 0
    return known if known.ndim == 1 else known.flatten(1).any(1)
