"""How a lab trains, in plain values, and who looks on."""

from __future__ import annotations

import math
from typing import Any

from sftc.loop import Budget, Care
from sftc.store import Run

PIXELS = 1 << 19  # that are scored at once, where each has an answer


def at_once(rows: int, facts: Any) -> int:
    """How many rows are scored together: as asked, but of answers at every pixel no more than memory has room for."""
    return max(1, min(rows, PIXELS // math.prod(facts.shape[1:]))) if facts.kind == "pixels" else rows


class Settings:
    """How a lab trains: plain values and the optim, schedule, finetune and semi nodes of the config."""

    def __init__(
        self,
        *,
        optim: dict[str, Any],
        schedule: dict[str, Any],
        finetune: dict[str, Any],
        budget: Budget,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        micro_batch_size: int | None = None,
        care: Care | None = None,
        clip: float | None = None,
        ema: float | None = None,
        l1: float = 0.0,
        l2_sp: float = 0.0,
        semi: dict[str, Any] | None = None,
    ) -> None:
        self.optim = optim
        self.schedule = schedule
        self.finetune = finetune
        self.budget = budget
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.micro_batch_size = micro_batch_size
        self.care = care or Care()
        self.clip = clip
        self.semi = semi or {"name": "none"}
        self.ema = self.semi.get("decay") if ema is None else ema
        self.l1 = l1
        self.l2_sp = l2_sp


class Watch:
    """Who looks on: gets every epoch's row and every step. This one looks away; `track` has ones that show."""

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None: ...
    def tick(self, step: int, total: int, loss: float | None) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def say(self, line: str) -> None: ...
    def end(self) -> None: ...
