"""Learners -> the state of a fit: each gets the optimizer, schedule, average and clipping of its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sftc import optim
from sftc.device import Device
from sftc.lab.settings import Settings
from sftc.loop import Fit, Trainee
from sftc.losses import L1, L2SP
from sftc.objective import Learner, Objective, mix
from sftc.optim.averaging import average
from sftc.types import Batch, Penalty, Source


def assemble(
    learners: Sequence[Learner],
    sources: list[Source],
    firsts: Sequence[Batch],
    device: Device,
    seed: int,
    settings: Settings,
    epochs: int | None = None,
) -> Fit:
    """A fit that has not begun.

    Args:
        firsts: a real batch of each source, for terms whose shape only such a one shows.
        settings: of the fit; learners may have their own on how they step.
        epochs: instead of the configured number.
    """
    ways = [optim.finetune((x.settings or settings).finetune) for x in learners]
    for x, way in zip(learners, ways, strict=True):
        look = None if x.through else firsts[x.source].map(lambda t: t[:2].cpu()).inputs
        way.begin(x.student, look, mix(seed if x.seed is None else x.seed, 17))
    emas = [average(x.student, (x.settings or settings).ema) for x in learners]  # copies, so before hooks
    for x, ema in zip(learners, emas, strict=True):
        device.place(x.student)
        if ema is not None:
            ema.to(device.torch)
    objective = Objective(learners, device, seed)
    objective.averages = {x.name: ema.module for x, ema in zip(learners, emas, strict=True) if ema is not None}
    objective.prepare(firsts)
    steps = max(source.steps for source in sources)
    share = settings.budget.of(epochs).steps(steps) / steps
    owned: set[int] = set()
    trainees = []
    for x, ema, finetune in zip(learners, emas, ways, strict=True):
        s = x.settings or settings
        lr, decay = s.optim["lr"], s.optim["weight_decay"]
        groups = finetune.groups(x.student, lr, decay)
        for term in x.terms.values():
            groups += optim.plain_groups(term, lr, decay)
        groups = _unowned(groups, owned)
        optimizer = optim.optimizer(s.optim, groups)
        schedule = optim.schedule(s.schedule, optimizer, steps, share)
        trainees.append(Trainee(x, optimizer, schedule, finetune, clip=s.clip, ema=ema))
    fit = Fit(objective, trainees, sources)
    fit.micro = settings.micro_batch_size
    return fit


def penalties(student: nn.Module, l1: float, l2_sp: float) -> dict[str, Penalty]:
    out: dict[str, Penalty] = {}
    if l1:
        out["l1"] = L1(l1)
    if l2_sp:
        # Of a new head there is no start to go back to; of a model that loaded nothing, all of it is one.
        loaded = getattr(student, "loaded", None)
        start = {n: p.detach() for n, p in student.named_parameters() if not loaded or n in loaded}
        out["l2_sp"] = L2SP(l2_sp, start)
    return out


def _unowned(groups: list[dict[str, Any]], owned: set[int]) -> list[dict[str, Any]]:
    """Parameters that an earlier learner does not step already: learners may share modules."""
    out = []
    for group in groups:
        params = [p for p in group["params"] if id(p) not in owned]
        owned.update(map(id, params))
        if params:
            out.append({**group, "params": params})
    return out
