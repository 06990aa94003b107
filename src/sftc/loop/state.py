"""What a fit is made of: a budget, trainees, and the whole state in one object that can be written and read back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.loop import sound
from sftc.objective import Learner, Objective
from sftc.types import Metrics, Source


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

    def of(self, epochs: int | None) -> Budget:
        """The same with another number of epochs; None changes nothing."""
        return self if epochs is None else Budget(epochs, self.max_steps, self.patience, self.target)

    def steps(self, per_epoch: int) -> int:
        steps = self.epochs * per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class Care:
    """When a fit is saved, and what it does about trouble.

    Args:
        epochs, steps, minutes: save after so many of each; None: not by this measure. The end is always saved.
        nonfinite: a loss or gradient that is not finite: stop; skip the step; or rollback to the last saved state and
            go on from there without the step.
        oom: out of memory: halve the micro-batches, or stop.
    """

    def __init__(
        self,
        epochs: int | None = 1,
        steps: int | None = None,
        minutes: float | None = None,
        nonfinite: str = "stop",
        oom: str = "halve",
    ) -> None:
        self.epochs = epochs
        self.steps = steps
        self.minutes = minutes
        self.nonfinite = nonfinite
        self.oom = oom
        self._saved = time.monotonic()

    def due(self, step: int, epochs: int | None = None) -> bool:
        """Whether to save now, after `step` steps and, at the end of an epoch, `epochs` epochs."""
        by_epoch = epochs is not None and self.epochs is not None and epochs % self.epochs == 0
        by_step = self.steps is not None and step % self.steps == 0
        by_time = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        return by_epoch or by_step or by_time

    def saved(self) -> None:
        self._saved = time.monotonic()


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
        self.ended: dict[str, Any] | None = None  # {"why", "epoch", "step"} once it rests, before the fit has ended

    @property
    def scored(self) -> nn.Module:
        """The weights that are evaluated and kept: the average if there is one."""
        return self.learner.student if self.ema is None else self.ema.module

    def forget_gradients(self) -> None:
        """What the optimizer's zero_grad does, without the tenth of a millisecond that it takes to announce it."""
        for p in self.params:
            p.grad = None

    def judge(self, metrics: Metrics, epoch: int, step: int, verdict: bool | None = None) -> bool:
        """Note an epoch's metrics; True if they are the best so far, by the monitor, then by loss. NaN never is.

        Args:
            verdict: of the one it is trained with, whose epochs it must share; instead of its own.
        """
        task = self.learner.task
        self.last = metrics
        value = _rank(metrics.get(task.monitor, math.nan), task.maximize)
        rank = [value, _rank(metrics.get("loss", math.nan), False)]
        held = [-math.inf, -math.inf] if self.best is None else self.best["rank"]
        # Patience waits for the monitor itself: a loss falls long after an accuracy has stood still.
        self.stale = 0 if self.best is None or value > held[0] else self.stale + 1
        better = rank > held if verdict is None else verdict
        if self.best is not None and not better:
            return False
        self.best = {"epoch": epoch, "step": step, "rank": rank, "val": metrics}
        self.best_state = host_state(self.scored)
        return True

    def rest(self, why: str, epoch: int, step: int) -> None:
        """It has learned enough; others of the fit may go on."""
        self.ended = {"why": why, "epoch": epoch, "step": step}
        self.learner.resting = True

    def reached(self, target: float) -> bool:
        task = self.learner.task
        value = self.last.get(task.monitor, math.nan)
        return value >= target if task.maximize else value <= target

    def state_dict(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state_dict(),
            "ema": None if self.ema is None else _on_host(self.ema.module),
            "best": self.best,
            "best_state": self.best_state,
            "last": self.last,
            "stale": self.stale,
            "ended": self.ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best, self.best_state = state["best"], state["best_state"]
        self.last, self.stale = state["last"], state["stale"]
        self.ended = state["ended"]
        self.learner.resting = self.ended is not None


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


def _rank(value: float, maximize: bool) -> float:
    """The larger, the better; what is not a number comes last."""
    if math.isnan(value):
        return -math.inf
    return value if maximize else -value


def host_state(module: nn.Module) -> dict[str, Tensor]:
    return copied(module.state_dict())


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the host, and of nobody else's memory."""
    return {k: v.detach().to("cpu", copy=True) for k, v in state.items()}


def _on_host(module: nn.Module) -> dict[str, Tensor]:
    """No copies where it is there already: like the optimizer's, this is written before the next step changes it."""
    return {k: v.detach().cpu() for k, v in module.state_dict().items()}


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
        self.micro: int | None = None  # rows per forward; None takes the batch whole
        self.avoid: list[int] = []  # steps whose update was not finite and is left out

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors. A fit that has ended needs its optimizers no more."""
        scaler = self.objective.device.scaler
        trainees = [t.state_dict() for t in self.trainees]
        objective = _on_host(self.objective)
        for i, (t, state) in enumerate(zip(self.trainees, trainees, strict=True)):
            if not self.ended:
                state["optimizer"] = t.optimizer.state_dict()
            if t.best is not None and t.best["step"] == self.step:
                # What was just judged the best is in there twice: the same tensors, so it is written once.
                if t.ema is None:
                    objective |= {f"students.{i}.{k}": v for k, v in t.best_state.items()}
                else:
                    state["ema"] = t.best_state
        return {
            "objective": objective,
            "trainees": trainees,
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "ended": self.ended,
            "sums": self.sums,
            "seconds": self.seconds,
            "micro": self.micro,
            "avoid": self.avoid,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises, as `sound.check` and torch do, if the state is not of this fit."""
        sound.check(self, state)
        self.objective.load_state_dict(state["objective"])
        for trainee, saved in zip(self.trainees, state["trainees"], strict=True):
            trainee.load_state_dict(saved)
        if self.objective.device.scaler is not None:
            self.objective.device.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.ended = state["step"], state["epoch"], state["ended"]
        self.sums, self.seconds = dict(state["sums"]), state["seconds"]
        self.micro, self.avoid = state["micro"], list(state["avoid"])
