"""The training loop: one `fit` for every method, and one `predict`. Neither names a method, a file or a device.

A fit is entered at any step. Order and augmentation are functions of (seed, epoch, row), model randomness of (seed,
step), so its whole state is: weights, optimizer, schedule, scaler, EMA, best so far, position, sums of the epoch.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.device import Device, Later
from sftc.errors import Stopped
from sftc.models.surgery import train_mode
from sftc.objective import Learner, Objective
from sftc.types import Batch, Metrics, Predictions, Source, Step


class Budget:
    """How long a fit lasts. Epochs or steps, whichever ends first; then what may end it early.

    Args:
        epochs: passes over the longest source.
        max_steps: optimizer steps in all, or None.
        patience: epochs without a better monitor ("until it converges"), or None.
        target: value of the monitor that is good enough, or None.
    """

    def __init__(
        self, epochs: int, max_steps: int | None = None, patience: int | None = None, target: float | None = None
    ) -> None:
        self.epochs = epochs
        self.max_steps = max_steps
        self.patience = patience
        self.target = target

    def steps(self, per_epoch: int) -> int:
        steps = self.epochs * per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def passes(self, per_epoch: int) -> int:
        """Epochs that are begun: what a schedule spans, so that max_steps does not cut it off."""
        return math.ceil(self.steps(per_epoch) / per_epoch)


class Trainee:
    """A learner with what steps it: its own optimizer, schedule, clipping, average and best epoch."""

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        finetune: Any,
        *,
        clip: float | None = None,
        ema: Any = None,
    ) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self.schedule = schedule
        self.finetune = finetune
        self.clip = clip
        self.ema = ema
        self.names = {id(p): n for n, p in learner.student.named_parameters()}
        self.params = [p for g in optimizer.param_groups for p in g["params"]]
        self.best: dict[str, Any] | None = None  # {"epoch", "step", "rank", "val"}
        self.best_state: dict[str, Tensor] = {}
        self.last: Metrics = {}
        self.stale = 0  # epochs since the best

    @property
    def scored(self) -> nn.Module:
        """The weights that are evaluated and kept: the average if there is one."""
        return self.learner.student if self.ema is None else self.ema.module

    def judge(self, metrics: Metrics, epoch: int, step: int) -> bool:
        """Note an epoch's metrics; True if they are the best so far. A NaN is never better."""
        task = self.learner.task
        self.last = metrics
        value = metrics.get(task.monitor, math.nan)
        sign = 1 if task.maximize else -1
        held = -math.inf if self.best is None else self.best["rank"]
        rank = -math.inf if math.isnan(value) else sign * value
        if self.best is not None and rank <= held:
            self.stale += 1
            return False
        self.best = {"epoch": epoch, "step": step, "rank": rank, "val": metrics}
        self.best_state = host_state(self.scored)
        self.stale = 0
        return True

    def reached(self, target: float) -> bool:
        task = self.learner.task
        value = self.last.get(task.monitor, math.nan)
        return value >= target if task.maximize else value <= target

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": None if self.ema is None else host_state(self.ema.module),
            "best": self.best,
            "best_state": self.best_state,
            "last": self.last,
            "stale": self.stale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best, self.best_state = state["best"], state["best_state"]
        self.last, self.stale = state["last"], state["stale"]


class Fitted:
    """What a fit leaves of one learner: its model holding the best weights, and the last ones beside."""

    def __init__(
        self,
        model: nn.Module,
        last_state: dict[str, Tensor],
        best: dict[str, Any],
        last: dict[str, Any],
        seconds: float,
        ended: str,
    ) -> None:
        self.model = model
        self.last_state = last_state
        self.best = best  # {"epoch", "step", "val"} of the weights in `model`, chosen on validation
        self.last = last  # the same of the last weights
        self.seconds = seconds  # training and validation, over all sittings
        self.ended = ended  # by "budget", "target" or "patience"


def host_state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}


class Fit:
    """The whole state of a training, in one object that can be written and read back."""

    def __init__(self, objective: Objective, trainees: Sequence[Trainee], sources: Sequence[Source]) -> None:
        self.objective = objective
        self.trainees = list(trainees)
        self.sources = list(sources)
        self.per_epoch = max(s.steps for s in sources)
        self.step = 0  # optimizer steps done
        self.epoch = 0  # epochs trained and evaluated
        self.ended: str | None = None  # what ended the fit, once it has
        self.sums: dict[str, float] = {}  # of each loss part over the steps of this epoch
        self.seconds = 0.0  # training and evaluation time, over all sittings

    def state_dict(self) -> dict[str, Any]:
        scaler = self.objective.device.scaler
        return {
            "objective": host_state(self.objective),
            "trainees": [t.state_dict() for t in self.trainees],
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "ended": self.ended,
            "sums": self.sums,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        for trainee, saved in zip(self.trainees, state["trainees"], strict=True):
            trainee.load_state_dict(saved)
        if self.objective.device.scaler is not None:
            self.objective.device.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.ended = state["step"], state["epoch"], state["ended"]
        self.sums, self.seconds = dict(state["sums"]), state["seconds"]


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
    watch = _Watch(device)
    try:
        while state.step < goal:
            batches = [next(s) for s in streams]
            step = _forward_backward(state, batches, device, micro, total)
            sums.add({**step.parts, "loss": step.loss})
            norms = _norms(state.trainees, device)
            watch.see(state, step, norms, batches)
            for t, norm in zip(state.trainees, norms, strict=True):
                if t.clip is not None and norm is not None:
                    torch.nn.utils.clip_grads_with_norm_(t.params, t.clip, torch.linalg.vector_norm(norm))
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
    pieces = max(math.ceil(len(b) / size) for b in batches)
    cut = [b.split(math.ceil(len(b) / pieces)) for b in batches]
    fewest = min(len(c) for c in cut)
    if any(len(c) != fewest for c in cut):
        cut = [b.split(math.ceil(len(b) / fewest)) for b in batches]
    return [list(piece) for piece in zip(*cut, strict=True)]


def _norms(trainees: Sequence[Trainee], device: Device) -> list[Tensor | None]:
    """[P] gradient norm of every parameter that has one, per trainee."""
    out: list[Tensor | None] = []
    for t in trainees:
        device.unscale(t.optimizer)
        grads = [p.grad for p in t.params if p.grad is not None]
        out.append(torch.stack(torch._foreach_norm(grads)) if grads else None)
    return out


class _Watch:
    """Looks for values that are not finite. On a CPU at once; on a GPU one step late, so that nothing waits.

    A late find has masked its own update on the device: gradients that are not finite became zero.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.loss: float | None = None
        self._pending: tuple[Any, ...] | None = None

    def see(self, state: Fit, step: Step, norms: list[Tensor | None], batches: list[Batch]) -> None:
        flags = [step.loss.double(), *(n.sum().double() for n in norms if n is not None)]
        now = (Later(torch.stack(flags)), state.step, step, norms, batches, state.trainees)
        if self.device.kind == "cpu":
            self._check(*now)
            return
        for t in state.trainees:
            for p in t.params:
                if p.grad is not None and self.device.scaler is None:
                    p.grad.nan_to_num_(0.0, 0.0, 0.0)
        before, self._pending = self._pending, now
        if before is not None:
            self._check(*before)

    def finish(self) -> None:
        if self._pending is not None:
            self._check(*self._pending)
            self._pending = None

    def _check(self, later: Later, number: int, step: Step, norms, batches: list[Batch], trainees) -> None:
        loss, *sums = later.read()
        self.loss = loss
        # Under 16-mixed an overflowing gradient is the scaler's business: it skips the step and lowers the scale.
        if math.isfinite(loss) and (self.device.scaler is not None or all(map(math.isfinite, sums))):
            return
        raise Stopped(_describe(number, step, norms, batches, trainees), code=1, state="failed")


def _describe(number: int, step: Step, norms, batches: list[Batch], trainees: Sequence[Trainee]) -> str:
    bad_rows: dict[str, list[int]] = {}
    index = batches[0].index
    for name, values in step.rows.items():
        wrong = ~values.flatten(1).isfinite().all(1) if values.ndim > 1 else ~values.isfinite()
        if wrong.any() and len(wrong) == len(index):
            bad_rows[name] = index[wrong].tolist()
    text = f"step {number}: the loss is {step.loss.item():.4g}"
    for name, rows in bad_rows.items():
        shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        text += f"; term {name} is not finite on rows {shown}"
    for t, norm in zip(trainees, norms, strict=True):
        if norm is not None and not bool(norm.isfinite().all()):
            with_grad = [p for p in t.params if p.grad is not None]
            first = int((~norm.isfinite()).nonzero()[0])
            text += f"; the gradient of {t.names.get(id(with_grad[first]), 'a term')} is not finite"
    return text + " (lower optim.lr, set clip=1, or look at these rows)"


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
    assert t.best is not None and state.ended is not None
    last_state = host_state(t.scored)
    model = t.learner.student
    model.load_state_dict(t.best_state)
    best = {k: v for k, v in t.best.items() if k != "rank"}
    last = {"epoch": state.epoch - 1, "step": state.step, "val": t.last}
    return Fitted(model.eval(), last_state, best, last, state.seconds, state.ended)


@torch.no_grad()
def predict(
    model: nn.Module, source: Source, task: Any, device: Device, meter: Any = None, keep: bool = True
) -> Predictions:
    """Scores of every row of a source, in its order; a meter sees the logits as they pass.

    Args:
        keep: False feeds the meter only and returns empty predictions: the epoch's validation needs no more.
    """
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    scores: list[Tensor] = []
    targets: list[Tensor] = []
    rows: list[Tensor] = []
    try:
        for batch in source.epoch(0):
            with device.autocast():
                logits = model(device.inputs(batch.inputs))
            logits = logits.float()
            if meter is not None:
                meter.update(logits, batch.target, batch.weight)
            if keep:
                s, t, r = task.flat(logits, batch.target, batch.index)
                scores.append(s.float().cpu()), targets.append(t.cpu()), rows.append(r.cpu())
    finally:
        for module, mode in was:
            module.training = mode
    if not keep:
        empty = torch.empty(0)
        return Predictions(empty, empty, empty.long())
    return Predictions(torch.cat(scores), torch.cat(targets), torch.cat(rows))
