"""The bench a strategy works at: one run's data, builders and folder.

A story is replayed, not remembered. `fit` on a run whose fit has ended returns what is stored, on a half-done one it
goes on, else it starts; `keep` on a finished run does nothing. So resuming is running the story again from line one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc import loop
from sftc.data import Data
from sftc.device import Device
from sftc.errors import Refused
from sftc.lab import results, semi, teams
from sftc.lab.fitting import assemble, penalties
from sftc.lab.settings import Settings, Watch, at_once
from sftc.loop import Fit, Fitted
from sftc.losses import Truth
from sftc.metrics import Agreement
from sftc.models import Follower, adapt
from sftc.objective import Learner, Live, Objective
from sftc.positions import Said
from sftc.stop import Stopper
from sftc.store import Run
from sftc.types import Batch, Metrics, Source, Task

WRONG = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
TIMED = 16  # rows of a timed forward
PROBED = 64  # rows of the first batch on which the terms' shares of the gradient are looked at


class Lab:
    """One experiment.

    Args:
        data: read already, or a function that reads it.
        facts: what the model knows of its data (classes, shape, scaling); the data itself by default.
        seed: decides first weights and dropout.
        data_seed: decides order and augmentation; the same by default.
        split_seed: decides every choice of rows, so that members of a team agree on them.
        build: () -> a fresh model, which carries its `facts`.
        open: run folder -> the Lab of that finished run.
        fork: (name, seed=, rows=, **groups) -> the Lab of a member run with its own true config.
        share: (name, reuse=, **groups) -> the Lab of a run that other runs may use too.
        card: writes the page about a run that has its result.
        stop: asked after every step; what it returns is raised once all is saved.
    """

    def __init__(
        self,
        *,
        run: Run,
        data: Data | Callable[[], Data],
        facts: Any = None,
        task: Task,
        device: Device,
        build: Callable[[], nn.Module],
        settings: Settings,
        seed: int = 0,
        data_seed: int | None = None,
        split_seed: int = 0,
        rows: Tensor | None = None,
        watch: Watch | None = None,
        stop: Stopper | None = None,
        open: Callable[[str], Lab] | None = None,
        fork: Callable[..., Lab] | None = None,
        share: Callable[..., Lab] | None = None,
        card: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self.run = run
        self._data = data
        self.task = task
        self.device = device
        self.settings = settings
        self.seed = seed
        self.data_seed = seed if data_seed is None else data_seed
        self.split_seed = split_seed
        self.rows = rows
        self.watch = watch or Watch()
        self.stop = stop or Stopper()
        self._build = build
        self._open = open
        self._fork = fork
        self._share = share
        self._card = card
        self.facts = data if facts is None else facts

    @property
    def data(self) -> Data:
        """Read when it is first looked at: a teacher opens without the data it learned from."""
        if not isinstance(self._data, Data):
            self._data = self._data()
        return self._data

    def model(self) -> nn.Module:
        """A fresh model; its first weights are a function of the run's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self._build()

    def restore(self, which: str = "model") -> nn.Module:
        """The model of this run with the weights it kept. Raises Refused: none are there, or they do not fit."""
        if self.run.fused:
            return self.device.place(teams.restored(self)).eval()
        model = self.model()
        state = self.run.weights(which)
        try:
            model.load_state_dict(state)
        except RuntimeError as e:
            line = str(e).splitlines()[1].strip() if "\n" in str(e) else str(e)
            raise Refused(f"the weights of {self.run.path} do not fit its own config: {line}") from None
        return self.device.place(model).eval()

    def open(self, run: str) -> Lab:
        if self._open is None:
            raise ValueError("this lab cannot open other runs")
        return self._open(run)

    def fork(self, name: str, *, seed: int | None = None, rows: Tensor | None = None, **groups: Any) -> Lab:
        if self._fork is None:
            raise ValueError("this lab cannot make members")
        return self._fork(name, seed=seed, rows=rows, **groups)

    def share(self, name: str, *, reuse: bool = True, **groups: Any) -> Lab:
        """A run that others may use too: found by what it is made of, else to be trained. Held until `run.unlock()`."""
        if self._share is None:
            raise ValueError("this lab cannot share runs")
        return self._share(name, reuse=reuse, **groups)

    def teacher(self, run: str | Lab, taps: Sequence[str] = (), columns: Tensor | None = None) -> Live:
        """A finished run as a live, frozen teacher of this lab's rows.

        Args:
            columns: [C] which of its outputs are this data's classes, where they are not the same ones in order.

        Raises:
            Refused: the run has no weights, or its rows have another form.
        """
        home = self.open(run) if isinstance(run, str) else run
        mine, theirs = self.facts, home.facts
        if mine.kind != theirs.kind:
            raise Refused(f"teacher {home.run.path} learned {theirs.kind}; the data holds {mine.kind}")
        grey = mine.shape[:1] == (1,) and mine.form.kind == theirs.form.kind == "picture"  # is repeated for each colour
        tables = mine.form.kind == theirs.form.kind == "table"  # which are matched by their columns
        if not grey and not tables and not mine.form.fits(theirs.form):
            raise Refused(f"teacher {home.run.path} learned rows of form {theirs.form}; the data's are {mine.form}")
        if more := adapt.ignored(mine, theirs):
            self.watch.say(f"teacher {home.run.path} never saw {', '.join(more)}, and answers without")
        model = adapt.adapted(home.restore, mine, theirs, columns, f"teacher {home.run.path}")
        return Live(model, self.device, taps)

    def source(self, split: str, *, train: bool = False, rows: Tensor | None = None) -> Source:
        s = self.settings
        return self.data.source(
            split,
            s.batch_size if train else at_once(s.eval_batch_size, self.facts),
            train=train,
            seed=self.data_seed,
            device=self.device.torch,
            rows=rows,
            free_bytes=self.device.free_bytes(),
            second=semi.second(s.semi, self.data) if train else None,
        )

    def view(self, split: str, view: int) -> Source:
        """Every row of a split once, in order, in one of the views that training sees."""
        return self.data.source(
            split,
            at_once(self.settings.eval_batch_size, self.facts),
            train=True,
            seed=self.data_seed,
            device=self.device.torch,
            free_bytes=self.device.free_bytes(),
            view=view,
        )

    def learner(self, student: nn.Module, **more: Any) -> Learner:
        """A learner of this lab's task, with the penalties, optimizer and schedule of its config.

        It also learns from rows without a label as the config says, unless it reads what leaders say of them.
        """
        s = self.settings
        own = {"task": self.task, "penalties": penalties(student, s.l1, s.l2_sp), "settings": s, "seed": self.seed}
        if not isinstance(student, Follower):
            more["terms"] = {**(more.get("terms") or {"truth": Truth()}), **semi.terms(s.semi)}
        return Learner(student, **{**own, **more})

    def fit(
        self,
        *learners: Learner | nn.Module,
        rows: Tensor | None = None,
        val_rows: Tensor | None = None,
        row_weight: Tensor | None = None,
        epochs: int | None = None,
        sources: Sequence[tuple[Source, Source]] | None = None,
    ) -> list[Fitted]:
        """Train the learners together, in this run.

        Args:
            learners: models become learners of the truth.
            rows: source rows to train on, repeats allowed (bagging); this run's own by default.
            val_rows: source rows to validate on, taken from train (folds); the validation split by default.
            row_weight: [n] weight of each source row, for models given as such (boosting).
            epochs: instead of the configured number.
            sources: (train, val) per `Learner.source`; this lab's data by default.
        """
        students = [
            x if isinstance(x, Learner) else self.learner(x, row_weight=row_weight, name=f"student{i}")
            for i, x in enumerate(learners)
        ]
        pairs = list(sources) if sources is not None else [self.sources(rows, val_rows)]
        firsts = [next(iter(train.epoch(0))) for train, _ in pairs]
        trains = [train for train, _ in pairs]
        state = assemble(students, trains, firsts, self.device, self.seed, self.settings, epochs)
        troubles: list[str] = []
        saved = self.run.checkpoints.read(troubles.append)
        if saved is not None:
            self._take_up(state, saved)
        self.run.forget_from(state.epoch)  # without a checkpoint, too: then the fit starts again
        budget = self.settings.budget.of(epochs)
        total = budget.steps(state.per_epoch)
        firsts = [first.map(lambda t: t[:PROBED]) for first in firsts]
        self.watch.begin(self.run, state.per_epoch, self.task.monitor)
        for line in troubles:
            self.watch.say(line)
        try:
            with self.stop.polling():
                return loop.fit(
                    state,
                    device=self.device,
                    budget=budget,
                    care=self.settings.care,
                    score=lambda i, module: self._score(module, students[i], pairs[students[i].source][1]),
                    log=lambda row: self._log(row | _told(state.objective, firsts, row["step"] / max(1, total))),
                    save=self._save,
                    load=self._roll_back,
                    stop=self.stop,
                    tick=self.watch.tick,
                    say=self.watch.say,
                )
        except WRONG as e:
            if saved is None or state.step > saved["step"]:
                raise
            raise self._misfit(e) from e  # the very first step: an optimizer found something else than it keeps
        finally:
            self.watch.end()

    def sources(self, rows: Tensor | None = None, val_rows: Tensor | None = None) -> tuple[Source, Source]:
        """What a fit of this lab reads: (train, val)."""
        rows = semi.rows(self.settings.semi, self.data, self.rows if rows is None else rows)
        train = self.source("train", train=True, rows=rows)
        val = self.source("val") if val_rows is None else self.source("train", rows=val_rows)
        return train, val

    def _take_up(self, state: Fit, saved: dict[str, Any]) -> None:
        """Raises Refused: the checkpoint is whole, but of another fit."""
        try:
            state.load_state_dict(saved)
        except Exception as e:  # whatever the content leads torch to
            raise self._misfit(e) from e

    def _misfit(self, error: Exception) -> Refused:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return Refused(f"the state in {self.run.path / 'checkpoint'} does not fit its own config ({said})")

    def _roll_back(self) -> dict[str, Any] | None:
        saved = self.run.checkpoints.read(self.watch.say)
        if saved is not None:
            self.run.forget_from(saved["epoch"])
        return saved

    def _score(self, module: nn.Module, learner: Learner, val: Source) -> Metrics:
        meter: Any = learner.task.meter(full=False)
        if learner.reference is not None:
            meter = Agreement(meter, learner.task, learner.reference)
        loop.predict(module, val, learner.task, self.device, meter, keep=False, stop=self.stop)
        return meter.compute()

    def _save(self, state: dict[str, Any]) -> None:
        self.run.add_skipped(self.data.skipped)  # first: who goes on from this state does not meet these rows again
        self.run.checkpoints.write(state)

    def _log(self, row: dict[str, Any]) -> None:
        self.run.log(row)
        self.watch.row(row)

    def predict(
        self, model: nn.Module, split: str, rows: Tensor | None = None, meter: Any = None, keep: bool = True
    ) -> Said:
        source = self.source(split, rows=rows)
        return loop.predict(model, source, self.task, self.device, meter, keep, folder=self.run.path)

    def measure(self, model: nn.Module, split: str, keep: bool = True) -> tuple[Said, Metrics, dict[str, Any]]:
        """Predictions of a split, none unless `keep`; its metrics, and the table per class."""
        meter = self.task.meter()
        predictions = self.predict(model, split, meter=meter, keep=keep)
        return predictions, meter.compute(), meter.per_class()  # type: ignore[attr-defined]

    @torch.no_grad()
    def milliseconds(self, model: nn.Module) -> float:
        """Median time of a forward in eval mode, per row, on a few real rows."""
        model.eval()
        inputs = next(iter(self.source("val").epoch(0))).map(lambda t: t[:TIMED]).inputs
        rows = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
        times = []
        for _ in range(4):
            self.device.wait()
            begun = time.perf_counter()
            with self.device.autocast():
                model(self.device.inputs(inputs))
            self.device.wait()
            times.append(time.perf_counter() - begun)
        return 1000 * statistics.median(times[1:]) / rows

    def keep(self, fitted: Fitted, more: results.More = lambda found: {}) -> None:
        """Write weights, predictions, result and card: after this the run is finished. Test is read here, once.

        Args:
            more: further entries of result.json, from what was found on each split.
        """
        if not self.run.finished:
            results.keep(self, fitted, more)

    def fitted(self) -> Fitted:
        """What the fit of this run left, once it is finished: to be kept under another name."""
        return results.kept(self)

    def untrained(self, model: nn.Module) -> Fitted:
        """A model that came trained, as the outcome of a fit that had nothing to do."""
        return results.untrained(self, model)

    def card(self) -> None:
        """README.md of the run, from its own files."""
        self._card(self.run)


def _told(objective: Objective, firsts: Sequence[Batch], progress: float) -> dict[str, float]:
    """What a row of the log says besides losses and scores."""
    out = {f"share/{name}": value for name, value in objective.shares(firsts, progress).items()}
    for learner in objective.learners:
        out |= {f"beside/{name}": value for name, value in learner.beside.items()}
    return out
