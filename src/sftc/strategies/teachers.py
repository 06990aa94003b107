"""Teachers: made if none is there, held against the student's data, and asked live or from stored answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sftc import answers
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.models.surgery import Tapped, head_names
from sftc.objective import Live
from sftc.positions import Said, sampled
from sftc.store import hash_tensors
from sftc.types import Metrics, Teacher


class Taught:
    """A teacher that may teach: admitted, with what it says on the student's validation rows."""

    def __init__(self, home: Lab, live: Live, val: Said, metrics: Metrics, remarks: list[str]) -> None:
        self.home = home
        self.live = live
        self.val = val
        self.metrics = metrics
        self.remarks = remarks
        self.hash: str = home.run.result["fingerprints"]["model"]
        fused = home.run.fused  # its config is about the first of its members
        self.name = f"fused by {home.run.result['model']['name']}" if fused else str(home.run.config["model"]["name"])
        self.path = str(home.run.path)

    @property
    def params(self) -> int:
        return sum(p.numel() for p in self.live.model.parameters())


def made(
    lab: Lab,
    node: dict[str, Any],
    *,
    epochs: int | None,
    lr: float | None,
    seed: int,
    reuse: bool,
    taps: Sequence[str] = (),
) -> str:
    """The run folder of a teacher fine-tuned on the student's own data, now or by an earlier run.

    With `epochs=0` the weights are taken as they are: a checkpoint that was trained elsewhere becomes a run.

    Raises:
        Refused: it cannot be built, lacks one of `taps`, or came with a head that was never trained.
    """
    config = lab.run.config
    groups: dict[str, Any] = {"model": node, "seed": seed, "target": None}
    # Students that differ in the number of views they see, in how far they go, or in the rows they see without a label,
    # share one teacher: of labels it learns from those of a limit, whose rows they are.
    groups["data"] = {**config["data"], "views": None}
    if config["data"]["unlabeled"] and config["semi"]["name"] == "none":  # else it learns from them as the student does
        rows = len(lab.data.splits["train"].rows)
        groups["data"] |= {"unlabeled": None, "limit": rows - round(config["data"]["unlabeled"] * rows)}
    groups["max_minutes"] = None
    if epochs is not None:
        groups["epochs"] = epochs
    if lr is not None:
        groups["optim"] = {**config["optim"], "lr": lr}
    try:
        home = lab.share("teacher", reuse=reuse, **groups)
    except Refused as e:  # its model may not be what the student's is
        raise Refused(f"teacher {node['name']}: {e}") from None
    try:
        if home.run.finished:
            lab.watch.say(f"teacher {node['name']}: {home.run.path} is there already")
        else:
            _train(lab, home, node, taps, fit=epochs != 0)
    except Refused:
        home.run.discard()
        raise
    finally:
        home.run.unlock()
    return str(home.run.path)


def _train(lab: Lab, home: Lab, node: dict[str, Any], taps: Sequence[str], fit: bool) -> None:
    model = home.model()
    Tapped(model, taps).close()  # a mistyped one is not worth a training
    if not fit:
        _refuse_new_head(model, node)
        home.keep(home.untrained(model))
        return
    lab.watch.say(f"teacher {node['name']}: fine-tuning it first, in {home.run.path}")
    (fitted,) = home.fit(model)
    home.keep(fitted)


def _refuse_new_head(model: torch.nn.Module, node: dict[str, Any]) -> None:
    heads = tuple(f"{path}." for path in head_names(model))
    loaded = getattr(model, "loaded", set())
    if not any(name.startswith(heads) for name in loaded):
        raise Refused(
            f"teacher {node['name']}: its head was never trained ({', '.join(heads)[:-1]} came from no checkpoint); "
            "leave strategy.teacher_epochs away to fine-tune it, or name a strategy.teacher.checkpoint that has one"
        )


def admit(lab: Lab, name: str, path: str, taps: Sequence[str], *, map_classes: bool, allow_weak: bool | None) -> Taught:
    """A finished run as a teacher of this lab's rows, remembered as member `name` with the hash of its weights.

    Args:
        allow_weak: True: also one that is no better than a constant answer; None: so, but say it.

    Raises:
        Refused: it is not finished, learned other classes, or is no better than a constant answer.
    """
    home = lab.open(path)
    if not home.run.finished:
        state = home.run.status.get("state")
        raise Refused(f"teacher {path} is not finished ({state}); finish it: sftc train resume={path}")
    if lab.run.reference(name) is None:  # else it was admitted before, and has not changed since
        lab.run.refer(name, home.run.path)
    alike = home.facts.kind == lab.facts.kind  # else lab.teacher says what is wrong
    columns = (
        _columns(path, home.facts.class_names, lab.facts.class_names, map_classes, home.facts.kind) if alike else None
    )
    live = lab.teacher(home, taps, columns)
    if not home.run.fused and hash_tensors(live.own.state_dict()) != home.run.result["fingerprints"]["model"]:
        raise Refused(f"teacher {path}: model.safetensors is not what its result.json is about; train it again")
    meter = lab.task.meter(full=False)
    val = lab.predict(live.model, "val", meter=meter)
    metrics = meter.compute()
    remarks = _overlap(lab, home)
    weak = _weak(lab, path, metrics, val)
    if weak and allow_weak is False:
        raise Refused(f"{weak}; strategy.allow_weak=true learns from it all the same")
    return Taught(home, live, val, metrics, [*remarks, *([weak] if weak else [])])


def _columns(path: str, theirs: list[str], mine: list[str], map_classes: bool, kind: str) -> Tensor | None:
    """Which outputs of a teacher are the student's classes: None if all are, in order."""
    if theirs == mine:
        return None
    if sorted(theirs) == sorted(mine):
        why = f"has the classes in another order ({', '.join(theirs[:4])}, ... against {', '.join(mine[:4])}, ...)"
    elif set(mine) <= set(theirs):
        why = f"has {len(theirs)} classes, the student's {len(mine)} among them"
    else:
        lacking = [c for c in mine if c not in theirs]
        what = "values" if kind == "values" else "classes"
        way = "train one with the student's data.target and loss" if kind == "values" else "data.classes"
        raise Refused(
            f"teacher {path} has {len(theirs)} {what} and the data {len(mine)}; it does not know "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}: choose another, or {way}"
        )
    if not map_classes:
        raise Refused(f"teacher {path} {why}; strategy.map_classes=true puts them in order")
    return torch.tensor([theirs.index(c) for c in mine])


def _weak(lab: Lab, path: str, metrics: Metrics, val: Said) -> str | None:
    """Why a teacher has nothing to say: by the monitor it is no better than the best constant answer."""
    some = sampled(val)
    there = lab.task.labelled(some.target)
    known = some.target[there]
    constant = lab.task.constant(known)
    meter = lab.task.meter(full=False)
    meter.update(constant.expand(len(known), -1), known, row=some.row[there])
    name = lab.task.monitor
    ours, least = metrics[name], meter.compute()[name]
    better = ours > least if lab.task.maximize else ours < least
    if better:
        return None
    return f"teacher {path} is no better than a constant answer on validation ({name} {ours:.4f} against {least:.4f})"


def _overlap(lab: Lab, home: Lab) -> list[str]:
    """A remark if the teacher was trained on rows the student is validated on."""
    theirs, mark = home.run.rows_of("train"), home.run.rows_meta().get("table")
    if theirs is None or mark is None or mark != lab.data.splits["val"].table.fingerprint():
        return []
    seen = int(torch.isin(lab.data.splits["val"].rows, theirs).sum())
    if not seen:
        return []
    total = len(lab.data.splits["val"].rows)
    return [f"teacher {home.run.path} was trained on {seen} of the {total} validation rows: its scores flatter it"]


def answering(lab: Lab, taught: Taught, *, how: str, temperature: float | None, topk: int | None) -> Teacher:
    """The teacher as a fit asks it: live, or from answers stored once for every (view, row)."""
    if how == "live":
        return taught.live
    data, columns = lab.data, getattr(taught.live.model, "columns", None)
    stored = answers.stored(
        taught.live,
        home=taught.home.run.path,
        beside=lab.run.path,
        marks={
            "model": taught.hash,
            "columns": "" if columns is None else str(columns.tolist()),
            "data": data.fingerprint,
            "shape": str(data.shape),
            "precision": f"{lab.device.kind} {lab.device.precision}",
        },
        view=lambda view: lab.view("train", view),
        views=(data.views or 1) if data.augment.active else 1,
        temperature=temperature,
        topk=topk,
        say=lab.watch.say,
        stop=lab.stop,
        device=lab.device.torch,
        free_bytes=lab.device.free_bytes(),
    )
    lab.watch.say(stored.note)
    return stored


def resolved(lab: Lab, how: str, features: bool, topk: int | None) -> str:
    """live or cached, for `auto` and the others; cached needs the same pictures to come back.

    Raises:
        Refused: cached was asked for, by name or by top-k, and cannot be.
    """
    augment = lab.data.augment
    why = None
    if features:
        why = "terms on features need the teacher itself; set strategy.teacher_outputs=live, or their weights to 0"
    elif augment.mixes:
        why = "stored answers are about unmixed pictures; set strategy.teacher_outputs=live, or mixup and cutmix to 0"
    elif augment.active and lab.data.views is None:
        why = "every epoch brings new pictures; set data.views=4, or strategy.teacher_outputs=live"
    if topk is not None and "classes" not in lab.task.offers:
        raise Refused("strategy.cache_topk keeps the most probable classes, which this data does not have; use null")
    if why and (how == "cached" or topk is not None):
        asked = "teacher_outputs=cached" if topk is None else f"cache_topk={topk}"
        raise Refused(f"strategy.{asked}: {why}")
    return ("live" if why else "cached") if how == "auto" else how
