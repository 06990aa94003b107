"""How fast weights move at each update: a factor on the rate that each parameter group was built with.

Factors make every schedule honour layer-wise rates, and let torch's plateau and one-cycle run on a shadow
optimizer of rate one, so warm-up and resuming are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from sftc.errors import Refused, choose


class Shape(Protocol):
    """The factor on the rate, warm-up aside."""

    def factor(self, update: int) -> float: ...  # after so many updates
    def epoch(self, metric: float) -> None: ...  # at the end of each epoch; smaller is better
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Schedule:
    """Sets the rate of every group of `optimizer` for the next update.

    Args:
        warmup: updates over which the rate climbs from near zero, in equal steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shape: Shape, warmup: int = 0) -> None:
        self.optimizer = optimizer
        self.shape = shape
        self.warmup = warmup
        self.updates = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # stored with the optimizer, so known after a resume
        self._apply()

    def step(self, update: int) -> None:
        """Call after every optimizer step with the number of updates done."""
        self.updates = update
        self._apply()

    def epoch(self, epoch: int, metric: float, maximize: bool) -> None:
        """Call at the end of every epoch with the monitored metric."""
        self.shape.epoch(-metric if maximize else metric)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Plain types: loads under weights_only."""
        return {"updates": self.updates, "shape": self.shape.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.shape.load_state_dict(state["shape"])
        self._apply()

    def _apply(self) -> None:
        climb = min(1.0, (self.updates + 1) / (self.warmup + 1))
        factor = climb * self.shape.factor(self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


class Curve:
    """A pure function of the update: nothing to remember."""

    def __init__(self, curve: Callable[[int], float]) -> None:
        self.curve = curve

    def factor(self, update: int) -> float:
        return self.curve(update)

    def epoch(self, metric: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Plateau:
    """torch's ReduceLROnPlateau."""

    def __init__(self, floor: float, factor: float, patience: int, cooldown: int, threshold: float) -> None:
        self.shadow = _shadow()
        # Absolute: a relative threshold turns round for metrics below zero, which accuracies are here.
        self.torch = ReduceLROnPlateau(
            self.shadow, "min", factor, patience, threshold, "abs", cooldown, min_lr=floor, eps=0
        )

    def factor(self, update: int) -> float:
        return self.shadow.param_groups[0]["lr"]

    def epoch(self, metric: float) -> None:
        self.torch.step(metric)

    def state_dict(self) -> dict[str, Any]:
        return {"torch": self.torch.state_dict(), "factor": self.factor(0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.torch.load_state_dict(state["torch"])
        self.shadow.param_groups[0]["lr"] = state["factor"]


class OneCycle:
    """torch's OneCycleLR (Smith & Topin 2019): up, down, and further down."""

    def __init__(self, total: int, pct_start: float, div_factor: float, final_div_factor: float) -> None:
        self.torch = OneCycleLR(
            _shadow(),
            max_lr=1.0,
            total_steps=max(total, 2),
            pct_start=pct_start,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            cycle_momentum=False,
        )
        self.torch.optimizer.step()  # of nothing: torch warns of schedulers that step before their optimizer has

    def factor(self, update: int) -> float:
        while self.torch.last_epoch < min(update, self.torch.total_steps - 1):
            self.torch.step()
        return float(self.torch.get_last_lr()[0])

    def epoch(self, metric: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.torch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.torch.load_state_dict(state)


def schedule(
    spec: Mapping[str, Any], optimizer: torch.optim.Optimizer, updates_per_epoch: int, epochs: float
) -> Schedule:
    """The schedule of a `schedule` node. Keys count in epochs, the rate changes at every update.

    Warm-up takes half of the run at most, so that a run of one epoch still gets to its full rate.

    Raises:
        Refused: no such schedule, a value out of range, or a `min_lr` above the rate itself.
    """
    keys = {k: v for k, v in spec.items() if k not in ("name", "warmup", "min_lr")}
    total = max(1, round(updates_per_epoch * epochs))
    warmup = min(round(spec.get("warmup", 0) * updates_per_epoch), total // 2)
    base = float(optimizer.defaults["lr"])
    floor = spec.get("min_lr", 0.0) / base
    if not 0 <= floor <= 1:
        raise Refused(f"schedule.min_lr={spec['min_lr']} must lie between 0 and optim.lr={base:g}")
    try:
        match choose("schedule", spec["name"], SCHEDULES):
            case "cosine":
                shape: Shape = Curve(lambda update: _cosine(update - warmup, total - warmup, floor))
            case "constant":
                shape = Curve(lambda update: 1.0)
            case "step":
                shape = Curve(_steps(updates_per_epoch, **keys))
            case "plateau":
                shape = Plateau(floor, **keys)
            case _:
                shape = OneCycle(total, **keys)
    except (ValueError, ZeroDivisionError) as error:
        raise Refused(f"schedule={spec['name']}: {error}") from error
    return Schedule(optimizer, shape, warmup)


SCHEDULES = ("cosine", "step", "plateau", "constant", "onecycle")


def _cosine(update: int, total: int, floor: float) -> float:
    done = min(1.0, max(0.0, update / total))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def _steps(
    updates_per_epoch: int, every: float, gamma: float, at: Sequence[float] | None = None
) -> Callable[[int], float]:
    """`gamma` once more after every `every` epochs or, if given, after each epoch of `at`."""
    if every <= 0 or gamma <= 0:
        raise ValueError(f"every and gamma={gamma} must be above 0")
    if at is None:
        return lambda update: gamma ** int(update / (every * updates_per_epoch) + 1e-9)
    if not at or not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in at):
        raise ValueError(f"at={list(at)} must list epochs above 0, or be null")
    drops = [epoch * updates_per_epoch - 1e-9 for epoch in at]
    return lambda update: gamma ** sum(update >= drop for drop in drops)


def _shadow() -> torch.optim.Optimizer:
    """An optimizer of nothing with rate one: a place where torch's schedulers can keep a factor."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(1, device="cpu"))], lr=1.0)
