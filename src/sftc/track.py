"""Who looks on while a run trains: the terminal, and trackers. None of them can change a number."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from typing import Any

from sftc.errors import Refused, choose, printable
from sftc.lab import Watch
from sftc.store import Run

REFRESH = 0.2  # seconds between two looks at the bar


def _summary(row: dict[str, Any], monitor: str) -> str:
    """One line of an epoch: loss, the monitor of each learner, the best so far, rate, time."""
    parts = [f"epoch {row['epoch'] + 1}", f"step {row['step']}", f"loss {row.get('train/loss', float('nan')):.4f}"]
    for key, value in row.items():
        if key.startswith("val/") and key.rsplit("/", 1)[-1] == monitor:
            learner = key[4 : -len(monitor)].strip("/")
            best = "*" if row.get(f"{learner}/best" if learner else "best") else ""
            parts.append(f"{key.replace('/', ' ')} {value:.4f}{best}")
    if "val/agreement" in row:
        parts.append(f"agrees with its teachers {row['val/agreement']:.4f}")
    parts += [f"{key.partition('/')[2]} {value:.4f}" for key, value in row.items() if key.startswith("beside/")]
    rates = [v for k, v in row.items() if k == "lr" or k.endswith("/lr")]
    parts += [f"lr {max(rates):.2e}", f"{row['seconds']:.1f} s"]
    if row.get("ended", "budget") != "budget":
        parts.append(f"ended by {row['ended']}")
    return "  ".join(parts)


class Lines(Watch):
    """A plain line per epoch: logs, pipes, CI."""

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None:
        self.monitor = monitor

    def row(self, row: dict[str, Any]) -> None:
        print(_summary(row, self.monitor), flush=True)

    def say(self, line: str) -> None:
        print(printable(line), flush=True)


class Bars(Watch):
    """Two bars on a terminal, epoch and total, with rate, time left, loss and metric; epochs scroll above."""

    progress: Any = None

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.monitor, self.per_epoch = monitor, per_epoch
        self.metric = ""
        self.progress = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True, markup=False, emoji=False),
            transient=True,
        )
        self.progress.start()
        self.epoch_bar = self.progress.add_task("epoch", total=None, note="", rate="")
        self.total_bar = self.progress.add_task("total", total=None, note="", rate="")
        self.started: tuple[float, int] | None = None
        self.looked = 0.0

    def tick(self, step: int, total: int, loss: float | None) -> None:
        now = time.monotonic()
        if self.started is None:
            self.started = now, step
        if now - self.looked < REFRESH and step < total:
            return
        self.looked = now
        rate = f"{(step - self.started[1]) / max(1e-9, now - self.started[0]):.1f} steps/s"
        before = (step - 1) // self.per_epoch * self.per_epoch
        in_epoch = min(self.per_epoch, total - before)
        note = "" if loss is None else f"loss {loss:.4f}"
        self.progress.update(self.epoch_bar, total=in_epoch, completed=step - before, rate=rate, note=note)
        self.progress.update(self.total_bar, total=total, completed=step, note=self.metric)

    def row(self, row: dict[str, Any]) -> None:
        values = [f"{v:.4f}" for k, v in row.items() if k.startswith("val/") and k.rsplit("/", 1)[-1] == self.monitor]
        self.metric = f"{self.monitor} {' '.join(values)}"
        self.progress.console.print(_summary(row, self.monitor), highlight=False)

    def say(self, line: str) -> None:
        if self.progress is None:  # before the first fit, or between two
            print(printable(line), file=sys.stderr, flush=True)
        else:
            self.progress.console.print(printable(line), highlight=False)

    def end(self) -> None:
        self.progress.stop()
        self.progress = None


class TensorBoard(Watch):
    """Scalars for TensorBoard in RUN/tensorboard; the step is the optimizer's."""

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Refused("tracker=tensorboard needs its package: pip install 'sftc[tensorboard]'") from None
        # purge_step: what a resumed run writes again replaces what was there.
        rows = run.rows()
        self.writer = SummaryWriter(
            str(run.inside("tensorboard")), purge_step=rows[-1].get("step", 0) + 1 if rows else 0
        )

    def row(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
                self.writer.add_scalar(key, value, row["step"])

    def end(self) -> None:
        self.writer.close()


class Csv(Watch):
    """metrics.csv: the rows of metrics.jsonl as a table. Written anew each epoch, so late columns fit in."""

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None:
        self.run = run

    def row(self, row: dict[str, Any]) -> None:
        import io

        rows = self.run.rows()
        columns = list(dict.fromkeys(key for r in rows for key in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.run.write_page("metrics.csv", text.getvalue())


class Watches(Watch):
    """Several at once."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.watches = list(watches)

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None:
        for w in self.watches:
            w.begin(run, per_epoch, monitor)

    def tick(self, step: int, total: int, loss: float | None) -> None:
        for w in self.watches:
            w.tick(step, total, loss)

    def row(self, row: dict[str, Any]) -> None:
        for w in self.watches:
            w.row(row)

    def say(self, line: str) -> None:
        for w in self.watches:
            w.say(line)

    def end(self) -> None:
        for w in self.watches:
            w.end()


TRACKERS: dict[str, type[Watch] | None] = {"none": None, "tensorboard": TensorBoard, "csv": Csv}


def make(tracker: str, quiet: bool) -> Watch:
    """The terminal's display and the tracker of a config."""
    kind = TRACKERS[choose("tracker", tracker, TRACKERS)]
    watches: list[Watch] = [] if quiet else [Bars() if sys.stderr.isatty() else Lines()]
    return Watches([*watches, kind()] if kind else watches)
