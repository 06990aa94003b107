"""Processes that read for us: what they refuse comes as one line, and one that dies is told from one that is slow."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sftc.data.skips import Lost
from sftc.errors import Refused, Stopped


class Readable(Protocol):
    """The part of a table that fetching needs."""

    shape: tuple[int, ...]

    def read(self, rows: Tensor, lost: Lost | None = None) -> Tensor: ...


class Died(Exception):
    """A worker process is no more."""


def alive(loader: DataLoader) -> Iterator[Any]:
    """What the loader gives. Raises Died: one of its workers is no more."""
    workers: list[BaseProcess] = []
    try:
        with _started(workers):
            results = iter(loader)
        yield from results
    except RuntimeError as error:
        if isinstance(error.__cause__, Stopped):  # a signal came, and the workers had died of it too
            raise error.__cause__ from None
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise Died("a process that reads data died (killed, or out of memory)") from None
    finally:
        for worker in workers:  # left early, the loader would wait for each to end what it is at
            worker.kill()  # a first SIGTERM it would let pass


@contextlib.contextmanager
def _started(workers: list[BaseProcess]) -> Iterator[None]:
    """Note the processes that are started here; and put the handler of SIGCHLD back, which torch replaces.

    By its handler a dead worker raises wherever we are, in the middle of a step even. Without it the loader sees the
    death when it next waits for a batch, five seconds later at most.
    """
    others = set(multiprocessing.active_children())
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        workers += set(multiprocessing.active_children()) - others
        if before is not None:
            with contextlib.suppress(ValueError):  # signal works in the main thread only
                signal.signal(signal.SIGCHLD, before)


class Reads(Dataset):
    """Row numbers in; raw rows out, and which of them are lost. A refusal comes as text: workers bury messages."""

    def __init__(self, table: Readable, skip: bool) -> None:
        self.table, self.skip = table, skip

    def __getitem__(self, rows: np.ndarray) -> tuple[Tensor, Lost] | str:  # type: ignore[override]
        lost: Lost = {}
        try:
            raw = (
                self.table.read(torch.from_numpy(rows), lost) if self.skip else self.table.read(torch.from_numpy(rows))
            )
            return raw, lost
        except Refused as error:
            return str(error)


def quiet(_worker: int) -> None:
    # A forked worker inherits the run's handlers, but only the run itself shall answer. Ctrl-C and a batch queue signal
    # all its processes: who died of that would take the step under way with him. A second SIGTERM is the run's own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
