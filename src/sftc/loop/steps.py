"""The steps of an epoch: forward, backward, look, clip, update, average; and what is asked between two of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sftc.device import Device
from sftc.errors import Stopped
from sftc.loop.finite import NotFinite, Watch, norms
from sftc.loop.state import Care, Fit
from sftc.models.surgery import train_mode
from sftc.types import Batch, Source, Step


class Steps:
    """The steps of a fit, and what is asked between them."""

    def __init__(self, state: Fit, device: Device, care: Care, total: int, save, stop, tick, say) -> None:
        self.state, self.device, self.care, self.total = state, device, care, total
        self._save, self.stop, self.tick, self.say = save, stop, tick, say
        self.running = Running(nn.ModuleList([state.objective.students, state.objective.terms]))

    def save(self) -> None:
        self._save(self.state.state_dict())
        self.care.saved()

    def train(self, goal: int) -> Stopped | None:
        """Steps up to `goal`; what ended them earlier, with the state whole."""
        state = self.state
        if state.step >= goal:
            return None
        train_mode(state.objective)
        for t in state.trainees:
            if t.ended:
                t.learner.student.eval()
        streams = [_stream(s, state.step) for s in state.sources]
        sums = _Sums(state.sums)
        watch = Watch(self.device, at_once=self.care.nonfinite != "stop")
        try:
            while state.step < goal:
                batches = [next(s) for s in streams]
                if state.step not in state.avoid:
                    self._step(batches, sums, watch)
                state.step += 1
                for t in state.trainees:
                    t.schedule.step(state.step)
                self.tick(state.step, self.total, watch.loss)
                if (why := self.stop()) is not None:
                    return why
                if state.step < goal and self.care.due(state.step):
                    watch.finish()
                    state.sums = sums.read()
                    self.save()
            watch.finish()
        except NotFinite as why:
            self._undo()
            return why
        finally:
            state.sums = sums.read()
            for s in streams:
                s.close()  # type: ignore[attr-defined]  # ends the workers of a streaming source
        return None

    def _step(self, batches: list[Batch], sums: _Sums, watch: Watch) -> None:
        state = self.state
        self.running.keep()
        step = self._forward_backward(batches)
        sizes = norms(state.trainees, self.device)
        watch.see(state, step, sizes, batches)
        sums.add({**step.parts, "loss": step.loss})
        for t, size in zip(state.trainees, sizes, strict=True):
            if t.clip is not None and size is not None:
                torch.nn.utils.clip_grads_with_norm_(t.params, t.clip, torch.linalg.vector_norm(size))
        watch.mask(state.trainees)
        self.device.step(*(t.optimizer for t in state.trainees if not t.ended))
        for t in state.trainees:
            t.forget_gradients()
            if t.ema is not None and not t.ended:
                t.ema.update(t.learner.student, step=state.step + 1)

    def _undo(self) -> None:
        """Take back what a step did before its update: gradients, and running statistics of its batch."""
        for t in self.state.trainees:
            t.forget_gradients()
        self.running.restore()

    def _forward_backward(self, batches: list[Batch]) -> Step:
        """One effective batch; if memory runs out, once more in smaller pieces."""
        while True:
            try:
                return self._pieces(batches)
            except RuntimeError as e:  # OutOfMemoryError is one, and so is what a CPU raises
                if not self.device.out_of_memory(e):
                    raise
                message = str(e).splitlines()[0]
            self._undo()  # after the except block, whose traceback holds the very tensors that are too many
            self.device.release()
            self._halve(batches, message)

    def _halve(self, batches: list[Batch], message: str) -> None:
        state, rows = self.state, max(len(b) for b in batches)
        now = min(state.micro or rows, rows)
        if self.care.oom == "stop" or now <= 2:
            way = "model.input_size, the model or batch_size" if now <= 2 else "micro_batch_size, or set oom=halve"
            raise Stopped(f"out of memory at {now} rows per forward ({message}); lower {way}", 1, "failed")
        state.micro = max(2, now // 2)
        coupled = "; the result changes, because rows meet in BatchNorm or in a term" if _couples(state) else ""
        self.say(f"out of memory at step {state.step}: {state.micro} rows per forward from here on{coupled}")

    def _pieces(self, batches: list[Batch]) -> Step:
        state = self.state
        totals = state.objective.totals(batches)
        progress = state.step / max(1, self.total)
        loss: Tensor | None = None
        parts: dict[str, Tensor] = {}
        rows: dict[str, list[Tensor]] = {}
        for i, pieces in enumerate(_micro(batches, state.micro)):
            step = state.objective(pieces, totals, progress, state.step, i)
            self.device.backward(step.loss)
            loss = step.loss.detach() if loss is None else loss + step.loss.detach()
            for name, part in step.parts.items():
                parts[name] = parts[name] + part if name in parts else part
            for name, value in step.rows.items():
                rows.setdefault(name, []).append(value)
        assert loss is not None
        return Step(loss, parts, {k: v[0] if len(v) == 1 else torch.cat(v) for k, v in rows.items()})


def _couples(state: Fit) -> bool:
    objective = state.objective
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in objective.students.modules())
    return norms or any(t.couples_rows for x in objective.learners for t in x.terms.values())


def _micro(batches: list[Batch], size: int | None) -> list[list[Batch]]:
    """Cut each source's batch into as many pieces as the one with most needs."""
    if size is None or all(len(b) <= size for b in batches):
        return [batches]
    pieces = min(max(math.ceil(len(b) / size) for b in batches), max(1, min(len(b) for b in batches) // 2))
    return [list(piece) for piece in zip(*(b.cut(pieces) for b in batches), strict=True)]


class Running:
    """Running statistics as they were before a step. A step that is taken back must not leave its batch in them."""

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict()
        self.buffers = [b for name, b in module.named_buffers() if name in saved]
        self.before = [b.clone() for b in self.buffers]

    def keep(self) -> None:
        for old, now in zip(self.before, self.buffers, strict=True):
            old.copy_(now)

    def restore(self) -> None:
        for old, now in zip(self.before, self.buffers, strict=True):
            now.copy_(old)


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
        self.steps = int(start.get("steps", 0))

    def add(self, parts: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in parts.items():
            if name in self.held:
                self.held[name] += value
            else:
                # Added one by one to what was summed before an interruption: the same rounding as without one.
                self.held[name] = value.double() + self.start.get(name, 0.0)

    def read(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.held.items()} | {"steps": self.steps} if self.held else self.start
