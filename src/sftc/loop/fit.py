"""`fit`: the order of things in training. Forward, backward, look, clip, step, average, score, judge, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sftc.device import Device
from sftc.errors import Stopped
from sftc.loop.finite import Watch, norms
from sftc.loop.state import Budget, Fit, Fitted, Trainee, host_state
from sftc.models.surgery import train_mode
from sftc.types import Batch, Metrics, Source, Step


def fit(
    state: Fit,
    *,
    device: Device,
    budget: Budget,
    micro: int | None = None,
    score: Callable[[int, nn.Module], Metrics],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[dict[str, Any]], None],
    stop: Callable[[], Stopped | None] = lambda: None,
    tick: Callable[[int, int, float | None], None] = lambda step, total, loss: None,
) -> list[Fitted]:
    """Train until the budget ends, from wherever `state` is.

    Args:
        micro: rows per forward; None takes the batch whole. The result changes only where rows meet (BatchNorm).
        score: (number of the learner, module) -> validation metrics.
        log: gets one row per epoch.
        save: gets the whole state, at every epoch end and when the fit is stopped.
        stop: asked after every step; an exception it returns is raised once the state is saved.
        tick: (steps done, steps planned, latest loss), for progress displays.

    Raises:
        Stopped: asked to stop (its own code), or a loss or gradient that is not finite (code 1).
    """
    total = budget.steps(state.per_epoch)
    objective = state.objective
    while not state.ended:
        begun = time.perf_counter()
        for t in state.trainees:
            t.finetune.epoch(t.learner.student, state.epoch)
        goal = min((state.epoch + 1) * state.per_epoch, total)
        try:
            if state.step < goal:
                train_mode(objective)
                _train_until(goal, total, state, device, micro, stop, tick)
            metrics = [score(i, t.scored) for i, t in enumerate(state.trainees)]
        except Stopped:
            state.seconds += time.perf_counter() - begun
            save(state.state_dict())
            raise
        state.seconds += time.perf_counter() - begun
        _close_epoch(state, metrics, goal, total, budget, log)
        save(state.state_dict())
        if not state.ended and (why := stop()) is not None:
            raise why
    return [_fitted(t, state) for t in state.trainees]


def _train_until(goal, total, state: Fit, device: Device, micro, stop, tick) -> None:
    streams = [_stream(s, state.step) for s in state.sources]
    sums = _Sums(state.sums)
    watch = Watch(device)
    try:
        while state.step < goal:
            batches = [next(s) for s in streams]
            step = _forward_backward(state, batches, device, micro, total)
            sums.add({**step.parts, "loss": step.loss})
            sizes = norms(state.trainees, device)
            watch.see(state, step, sizes, batches)
            for t, size in zip(state.trainees, sizes, strict=True):
                if t.clip is not None and size is not None:
                    torch.nn.utils.clip_grads_with_norm_(t.params, t.clip, torch.linalg.vector_norm(size))
            device.step(*(t.optimizer for t in state.trainees))
            state.step += 1
            for t in state.trainees:
                t.optimizer.zero_grad(set_to_none=True)
                t.schedule.step(state.step)
                if t.ema is not None:
                    t.ema.update(t.learner.student, step=state.step)
            tick(state.step, total, watch.loss)
            if (why := stop()) is not None:
                raise why
        watch.finish()
    finally:
        state.sums = sums.read()
        for s in streams:
            s.close()  # type: ignore[attr-defined]  # ends the workers of a streaming source


def _forward_backward(state: Fit, batches: list[Batch], device: Device, micro: int | None, total: int) -> Step:
    objective = state.objective
    totals = objective.totals(batches)
    progress = state.step / max(1, total)
    loss: Tensor | None = None
    parts: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for i, pieces in enumerate(_micro(batches, micro)):
        step = objective(pieces, totals, progress, state.step, i)
        device.backward(step.loss)
        loss = step.loss.detach() if loss is None else loss + step.loss.detach()
        for name, part in step.parts.items():
            parts[name] = parts[name] + part if name in parts else part
        for name, value in step.rows.items():
            rows.setdefault(name, []).append(value)
    assert loss is not None
    return Step(loss, parts, {k: v[0] if len(v) == 1 else torch.cat(v) for k, v in rows.items()})


def _micro(batches: list[Batch], size: int | None) -> list[list[Batch]]:
    """Cut each source's batch into as many pieces as the one with most needs."""
    if size is None or all(len(b) <= size for b in batches):
        return [batches]
    pieces = min(max(math.ceil(len(b) / size) for b in batches), max(1, min(len(b) for b in batches) // 2))
    return [list(piece) for piece in zip(*(b.cut(pieces) for b in batches), strict=True)]


def _stream(source: Source, step: int) -> Iterator[Batch]:
    """Batches from global step `step` on, epoch after epoch."""
    epoch, start = divmod(step, source.steps)
    while True:
        with contextlib.closing(source.epoch(epoch, start)) as batches:  # type: ignore[type-var]
            yield from batches
        epoch, start = epoch + 1, 0


class _Sums:
    """Running sums of the loss parts, on the device until somebody needs them."""

    def __init__(self, start: dict[str, float]) -> None:
        self.start = start
        self.held: dict[str, Tensor] = {}

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            if name in self.held:
                self.held[name] += value
            else:
                # Added one by one to what was summed before an interruption: the same rounding as without one.
                self.held[name] = value.double() + self.start.get(name, 0.0)

    def read(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.held.items()} if self.held else self.start


def _close_epoch(state: Fit, metrics: list[Metrics], goal: int, total: int, budget: Budget, log) -> None:
    steps = goal - state.epoch * state.per_epoch
    many = len(state.trainees) > 1
    row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "seconds": round(state.seconds, 3)}
    row |= {f"train/{k}": v / max(1, steps) for k, v in state.sums.items()}
    state.epoch += 1
    state.sums = {}
    for t, m in zip(state.trainees, metrics, strict=True):
        name = f"{t.learner.name}/" if many else ""
        row[f"{name}lr"] = max(g["lr"] for g in t.optimizer.param_groups)
        row |= {f"val/{name}{k}": v for k, v in m.items()}
        row[f"{name}best"] = t.judge(m, row["epoch"], state.step)
        t.schedule.epoch(state.epoch, m.get(t.learner.task.monitor, math.nan), t.learner.task.maximize)
    if budget.target is not None and all(t.reached(budget.target) for t in state.trainees):
        state.ended = "target"
    elif budget.patience is not None and all(t.stale >= budget.patience for t in state.trainees):
        state.ended = "patience"
    elif state.step >= total:
        state.ended = "budget"
    if state.ended:
        row["ended"] = state.ended
    log(row)


def _fitted(t: Trainee, state: Fit) -> Fitted:
    assert t.best is not None
    assert state.ended is not None
    last_state = host_state(t.scored)
    model = t.learner.student
    model.load_state_dict(t.best_state)
    best = {k: v for k, v in t.best.items() if k != "rank"}
    last = {"epoch": state.epoch - 1, "step": state.step, "val": t.last}
    return Fitted(model.eval(), last_state, best, last, state.seconds, state.ended)
