"""Values that are not finite: seen without making the device wait, and named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sftc.device import Device, Later
from sftc.errors import Stopped
from sftc.loop.state import Fit, Trainee
from sftc.types import Batch, Step


def norms(trainees: Sequence[Trainee], device: Device) -> list[Tensor | None]:
    """[P] gradient norm of every parameter that has one, per trainee."""
    out: list[Tensor | None] = []
    for t in trainees:
        device.unscale(t.optimizer)
        grads = [p.grad for p in t.params if p.grad is not None]
        out.append(torch.stack(torch._foreach_norm(grads)) if grads else None)  # pyright: ignore
    return out


class NotFinite(Stopped):
    """A step whose loss or gradients are not finite. `whole`: no weight has moved by it."""

    def __init__(self, message: str, step: int, whole: bool) -> None:
        super().__init__(message, code=1, state="failed")
        self.step = step
        self.whole = whole


class Watch:
    """Looks for values that are not finite: at once on a CPU, or where a step must be left out; else one step late.

    So a GPU waits for nothing. A late find has masked its own update there: gradients that are not finite became zero.
    """

    def __init__(self, device: Device, at_once: bool = False) -> None:
        self.device = device
        self.at_once = at_once or device.kind == "cpu"
        self.loss: float | None = None
        self._pending: tuple[Any, ...] | None = None

    def see(self, state: Fit, step: Step, norms: list[Tensor | None], batches: list[Batch]) -> None:
        flags = [step.loss, *(n.sum() for n in norms if n is not None)]
        now = (Later(torch.stack(flags)), state.step, step, norms, batches, state.trainees)
        if self.at_once:
            self._check(*now)
            return
        before, self._pending = self._pending, now
        if before is not None:
            self._check(*before)

    def mask(self, trainees: Sequence[Trainee]) -> None:
        """Make an update harmless that nobody has looked at yet. After clipping, which multiplies NaN back in."""
        if self.at_once or self.device.scaler is not None:
            return
        for t in trainees:
            for p in t.params:
                if p.grad is not None:
                    p.grad.nan_to_num_(0.0, 0.0, 0.0)

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
        raise NotFinite(_describe(number, step, norms, batches, trainees), number, self.at_once)


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
