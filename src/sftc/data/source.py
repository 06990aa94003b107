"""Sources: the rows of a plan as batches, fetched resident, held or streaming.

Both give the same bytes; all that is random happens afterwards, in one function of (raw batch, table rows).
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sftc.data import masks, random
from sftc.data.audio_augment import Changes
from sftc.data.augment import Draw
from sftc.data.plan import Plan
from sftc.data.skips import Skips
from sftc.data.workers import Died, Readable, Reads, alive, quiet
from sftc.errors import Refused, Stopped
from sftc.types import Batch, Partner

Raw = tuple[Tensor, Tensor | None]  # rows as they were read, and which of them could not be: bool [k], None for none

_DRAW_ROWS = 8192  # rows whose parameters are drawn at once: numpy's overhead vanishes, memory stays small
_WORTH_WORKERS = 64_000_000  # bytes of decoded rows, about the second or two that workers take to pay off


class Batches:
    """A types.Source: effective batches of one split, on the device, augmented as whole batches."""

    def __init__(
        self,
        plan: Plan,
        reader: Resident | Held | Streaming,
        target: Tensor,
        device: torch.device,
        *,
        augment: Changes | None,
        augment_seed: int,
        moments: tuple[Tensor, Tensor] | None = None,
        second: Changes | None = None,
        extent: Tensor | None = None,
        cut: Callable[[Tensor], Tensor] | None = None,
        masked: bool = False,
    ) -> None:
        self.cut = cut  # takes off what a table reads only for augmentation to move
        self.masked = masked  # whether the last channel of what is read is a mask
        self.second = second  # how another view of every row is made, kept as batch.extra["second"]; None: none is
        self.plan, self.reader, self.device = plan, reader, device
        self.augment, self.augment_seed = augment, augment_seed
        self.steps = len(plan.bounds)
        self.rows = plan.rows
        self.cache = reader.name  # "device", "host" or "none"
        # Part of the key of cached logits: the same view of a row is another picture under other settings.
        self.augmentation = "none" if augment is None else f"{augment.identity()}-{augment_seed}"
        self._target = target.to(device)
        self._moments = None if moments is None else tuple(m.to(device) for m in moments)
        self._extent = None if extent is None else extent.to(device)  # [n] positions of a row that are real

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `epoch` from step `start` on."""
        bounds = self.plan.bounds[start:]
        if not bounds:
            return
        index, view = self.plan.epoch(epoch)
        on_device = index.to(self.device)
        views = view.to(self.device)
        target = self._target.index_select(0, on_device)
        draws = self._draws(self.augment, index.numpy(), view.numpy(), bounds)
        seconds = self._draws(self.second, index.numpy(), view.numpy() + random.SECOND, bounds)
        raws = self.reader.batches(index, bounds)
        for (a, b), (raw, lost) in zip(bounds, raws, strict=True):
            if self._moments is not None:
                raw = (raw - self._moments[0]) / self._moments[1]
            raw, mask = masks.parted(raw, target[a:b]) if self.masked else (raw, None)
            plain = raw if self.cut is None else self.cut(raw)
            batch = Batch(plain, target[a:b], on_device[a:b], views[a:b])
            if self._extent is not None:
                place = torch.arange(target.shape[1], device=self.device)
                batch.weight = (place < self._extent[batch.index].unsqueeze(1)).float()
            if lost is not None:
                lost = lost.to(self.device)
                batch.weight = (~lost).float()
            if self.second is not None:
                batch.extra = {"second": self.second.apply(raw, next(seconds))[0]}
            lam = None
            if self.augment is not None:
                draw = next(draws)
                if lost is not None:
                    draw = draw.unmixed(lost.flip(0))
                batch.inputs, lam = self.augment.apply(raw, draw)
                if mask is not None:
                    pictures: Any = self.augment  # only those have masks
                    mask, lam = pictures.follow(mask, draw)
            if mask is not None:
                batch.target = masks.target(mask)
            if lam is not None:
                batch.partner = _mirrored(batch, lam)
            yield batch

    def _draws(
        self, augment: Changes | None, index: np.ndarray, view: np.ndarray, bounds: Sequence[tuple[int, int]]
    ) -> Iterator[Draw]:
        """Augmentation parameters of each batch. Drawn for many batches at once."""
        if augment is None:
            return
        per = max(1, _DRAW_ROWS // max(1, bounds[0][1] - bounds[0][0]))
        for i in range(0, len(bounds), per):
            some = bounds[i : i + per]
            lo, hi = some[0][0], some[-1][1]
            draw = augment.draw(self.augment_seed, index[lo:hi], view[lo:hi], self.reader.shape).to(self.device)
            for a, b in some:
                yield draw[a - lo : b - lo]


def _mirrored(batch: Batch, lam: Tensor) -> Partner:
    return Partner(batch.index.flip(0), batch.view.flip(0), batch.target.flip(0), lam)


class Resident:
    """Rows held in memory, as uint8 or float32, and gathered by index."""

    def __init__(self, inputs: Tensor, slot: Tensor | None, device: torch.device, lost: Tensor | None = None) -> None:
        self.inputs = inputs
        self.slot = slot  # source row number -> position in inputs; None: they are the same
        self.lost = lost  # bool, by source row number: could not be read; None: all could
        self.device = device
        self.shape = tuple(inputs.shape[1:])
        self.name = "device" if inputs.device == device and device.type != "cpu" else "host"

    def batches(self, index: Tensor, bounds: Sequence[tuple[int, int]]) -> Iterator[Raw]:
        lost = None if self.lost is None else self.lost[index]
        at = index if self.slot is None else self.slot[index]
        at = at.to(self.inputs.device)
        moves = self.inputs.device != self.device
        pin = moves and _pins(self.device)
        for a, b in bounds:
            raw = self.inputs.index_select(0, at[a:b])
            if moves:
                raw = (raw.pin_memory() if pin else raw).to(self.device, non_blocking=pin)
            yield raw, lost[a:b] if lost is not None and lost[a:b].any() else None


class Held:
    """Rows that a table holds in memory itself, not all of one length: a batch is as long as its longest row.

    Texts stay on the host (`table.host`): the model's first module makes numbers of them, which go to the device.
    """

    name = "host"

    def __init__(self, table: Readable, device: torch.device) -> None:
        self.table = table
        self.shape = tuple(table.shape)
        self.device = torch.device("cpu") if getattr(table, "host", False) else device

    def batches(self, index: Tensor, bounds: Sequence[tuple[int, int]]) -> Iterator[Raw]:
        pin = _pins(self.device)
        for a, b in bounds:
            raw = self.table.read(index[a:b])
            if self.device.type != "cpu":
                raw = (raw.pin_memory() if pin else raw).to(self.device, non_blocking=pin)
            yield raw, None


class Streaming:
    """Rows read when they are needed, by worker processes that only read, decode and resize.

    A worker that dies is replaced, once in an epoch: what it should have read is read again.

    Args:
        skips: notes the rows that cannot be read; None: they are refused.
    """

    name = "none"

    def __init__(self, table: Readable, workers: int | None, device: torch.device, skips: Skips | None = None) -> None:
        self.table, self.workers, self.device, self.skips = table, workers, device, skips
        self.shape = tuple(table.shape)

    def batches(self, index: Tensor, bounds: Sequence[tuple[int, int]]) -> Iterator[Raw]:
        done = 0
        for last in (False, True):
            try:
                for batch in self._read(index, bounds[done:]):
                    done += 1
                    yield batch
                return
            except Died as death:
                if last:
                    raise Stopped(f"{death}, twice; if memory ran out, lower data.workers", 1, "failed") from None
                print(f"{death}; it is replaced, and nothing is lost", file=sys.stderr, flush=True)

    def _read(self, index: Tensor, bounds: Sequence[tuple[int, int]]) -> Iterator[Raw]:
        pin = _pins(self.device)
        # Row numbers go to the workers as arrays: a tensor's memory would be moved, in place, to where
        # processes share it, and whoever still looks at the old place would read rubbish.
        asked = [index.numpy()[a:b] for a, b in bounds]
        loader = DataLoader(
            Reads(self.table, self.skips is not None),
            batch_size=None,
            sampler=asked,  # type: ignore[arg-type]
            num_workers=self._processes(bounds[-1][1] - bounds[0][0]),
            pin_memory=pin,
            worker_init_fn=quiet,
            generator=torch.Generator(),  # else the loader would draw its base seed from the global one
        )
        for rows, raw in zip(asked, alive(loader), strict=True):
            if isinstance(raw, str):
                raise Refused(raw)
            inputs, lost = raw
            if lost and self.skips is not None:
                self.skips.add({row: (path, why) for row, (path, why) in lost.items()})
            mask = torch.from_numpy(np.isin(rows, list(lost))) if lost else None
            yield inputs.to(self.device, non_blocking=pin), mask

    def _processes(self, rows: int) -> int:
        """Those asked for, else one per core up to four, or none for so little that starting them takes longer."""
        if self.workers is not None:
            return self.workers
        if rows * math.prod(self.shape) < _WORTH_WORKERS:
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(4, cores)


def _pins(device: torch.device) -> bool:
    return device.type not in ("cpu", "mps")


def hold(
    table: Readable,
    rows: Tensor,
    workers: int | None,
    home: torch.device,
    device: torch.device,
    skips: Skips | None = None,
) -> Resident:
    """Read `rows` once and keep them on `home`."""
    held: Tensor | None = None
    bounds = [(a, min(a + 256, len(rows))) for a in range(0, len(rows), 256)]
    reads = Streaming(table, workers if not hasattr(table, "inputs") else 0, torch.device("cpu"), skips)
    for (a, b), (raw, _) in zip(bounds, reads.batches(rows, bounds), strict=True):
        if held is None:
            held = torch.empty((len(rows), *raw.shape[1:]), dtype=raw.dtype, device=home)
        held[a:b] = raw.to(home)
    assert held is not None
    slot = torch.full((int(rows.max()) + 1,), -1)
    slot[rows] = torch.arange(len(rows))
    lost = None
    if skips is not None and skips.found:
        lost = torch.zeros_like(slot, dtype=torch.bool)
        lost[list(skips.found)] = True
    return Resident(held, slot, device, lost)


def place(nbytes: int, cache: str, device: torch.device, free_bytes: int | None, *, in_memory: bool) -> tuple[str, str]:
    """Where the raw rows of a split live ("device", "host", "none"), and why, in words."""
    size = _megabytes(nbytes)
    if cache == "device" and device.type == "cpu":
        cache = "host"
    if cache != "auto":
        return cache, f"cache={cache} as asked ({size})"
    if device.type != "cpu" and free_bytes is not None and nbytes <= 0.3 * free_bytes:
        return "device", f"held on the device ({size} of {_megabytes(free_bytes)} free)"
    if in_memory:
        return "host", f"held in memory ({size})"
    free = host_free()
    if nbytes <= 0.4 * free:
        return "host", f"held in memory ({size} of {_megabytes(free)} free)"
    return "none", f"streamed from disk ({size} decoded, {_megabytes(free)} of memory free)"


def host_free() -> int:
    """Bytes of memory this process may still take: what the machine has, or what its container is allowed."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no container, or one without a limit ("max")
        limit = int((group / "memory.max").read_text())
        stat = (group / "memory.stat").read_text().splitlines()
        reclaimable = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
        free = min(free, limit - int((group / "memory.current").read_text()) + reclaimable)
    return max(0, free)


def _megabytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
