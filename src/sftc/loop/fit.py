"""`fit`: the order of things over epochs. Train, score, judge, log, save; and what to do when something stops it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from sftc.device import Device
from sftc.errors import Stopped
from sftc.loop.finite import NotFinite
from sftc.loop.state import Budget, Care, Fit, Fitted, Trainee, copied
from sftc.loop.steps import Steps
from sftc.types import Metrics

MOST_LEFT_OUT = 20  # steps that are not finite; more of them are no accident


def fit(
    state: Fit,
    *,
    device: Device,
    budget: Budget,
    care: Care,
    score: Callable[[int, nn.Module], Metrics],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[dict[str, Any]], None],
    load: Callable[[], dict[str, Any] | None] = lambda: None,
    stop: Callable[[], Stopped | None] = lambda: None,
    tick: Callable[[int, int, float | None], None] = lambda step, total, loss: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Fitted]:
    """Train until the budget ends, from wherever `state` is.

    Args:
        score: (number of the learner, module) -> validation metrics.
        log: gets one row per epoch.
        save: gets the whole state as often as `care` says, at the end, and when the fit is stopped.
        load: the state saved last, for rolling back to.
        stop: asked after every step; what it returns is raised once the state is saved.
        tick: (steps done, steps planned, latest loss), for progress displays.
        say: gets a line about each trouble that was dealt with.

    Raises:
        Stopped: asked to stop (its own code), or trouble that `care` does not go on from (code 1).
    """
    work = Steps(state, device, care, budget.steps(state.per_epoch), save, stop, tick, say)
    if care.nonfinite == "rollback" and state.step == 0:
        work.save()
    while not state.ended:
        begun = time.perf_counter()
        for t in state.trainees:
            t.finetune.epoch(t.learner.student, state.epoch)
        goal = min((state.epoch + 1) * state.per_epoch, work.total)
        why, metrics = work.train(goal), []
        if why is None:
            metrics, why = _scores(state, score)
        state.seconds += time.perf_counter() - begun
        if isinstance(why, NotFinite) and _leave_out(why, state, care, load, say):
            continue
        if why is None:
            _close_epoch(state, metrics, goal, work.total, budget, log)
            why = None if state.ended else stop()
        if state.ended or (why and getattr(why, "whole", True)) or care.due(state.step, state.epoch):
            work.save()
        if why is not None:
            raise why
    return [_fitted(t, state) for t in state.trainees]


def _scores(state: Fit, score: Callable[[int, nn.Module], Metrics]) -> tuple[list[Metrics], Stopped | None]:
    try:
        return [{} if t.ended else score(i, t.scored) for i, t in enumerate(state.trainees)], None
    except Stopped as why:
        return [], why


def _leave_out(bad: NotFinite, state: Fit, care: Care, load, say) -> bool:
    """Whether to go on without the step: from here, or from the last saved state."""
    if care.nonfinite == "stop" or len(state.avoid) >= MOST_LEFT_OUT:
        return False
    avoid = sorted({*state.avoid, bad.step})
    if care.nonfinite == "rollback" and (older := load()) is not None:
        state.load_state_dict(older)
    state.avoid = avoid
    say(f"{bad}; going on from step {state.step} without it")
    return True


def _close_epoch(state: Fit, metrics: list[Metrics], goal: int, total: int, budget: Budget, log) -> None:
    steps = state.sums.pop("steps", 1)  # those that were not left out
    many = len(state.trainees) > 1
    row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "seconds": round(state.seconds, 3)}
    row |= {f"train/{k}": v / steps for k, v in state.sums.items()}
    state.epoch += 1
    state.sums = {}
    resting: list[tuple[Trainee, str]] = []
    for t, m in zip(state.trainees, metrics, strict=True):
        if t.ended:
            continue
        name = f"{t.learner.name}/" if many else ""
        row[f"{name}lr"] = max(g["lr"] for g in t.optimizer.param_groups)
        row |= {f"val/{name}{k}": v for k, v in m.items()}
        lead = t.learner.along
        row[f"{name}best"] = t.judge(m, row["epoch"], state.step, row[f"{lead}/best"] if lead else None)
        t.schedule.epoch(state.epoch, m.get(t.learner.task.monitor, math.nan), t.learner.task.maximize)
        why = "target" if budget.target is not None and t.reached(budget.target) else None
        why = why or ("patience" if budget.patience is not None and t.stale >= budget.patience else None)
        if lead is not None:  # it ends with the one it goes along with
            why = next((w for x, w in resting if x.learner.name == lead), None)
        why = why or ("budget" if state.step >= total else None)
        if why is not None:
            resting.append((t, why))
    if len(resting) + sum(t.ended is not None for t in state.trainees) == len(state.trainees):
        state.ended = resting[0][1]
    if state.ended:
        row["ended"] = state.ended
    if state.avoid:
        row["left_out"] = len(state.avoid)
    if state.micro is not None:
        row["micro_batch_size"] = state.micro
    log(row)
    for t, why in resting:  # after the log, which still looks at them
        t.rest(why, row["epoch"], state.step)


def _fitted(t: Trainee, state: Fit) -> Fitted:
    assert t.best is not None
    assert t.ended is not None
    last_state = copied(t.finetune.weights(t.scored))
    model = t.learner.student
    model.load_state_dict(t.best_state)
    t.finetune.end(model)
    best = {k: v for k, v in t.best.items() if k != "rank"}
    last = {"epoch": t.ended["epoch"], "step": t.ended["step"], "val": t.last}
    return Fitted(model.eval(), last_state, best, last, state.seconds, t.ended["why"])
