"""The bench a strategy works at: one run's data, builders and folder.

A story is replayed, not remembered. `fit` on a run whose fit has ended returns what is stored, on a half-done one it
goes on, else it starts; `keep` on a finished run does nothing. So resuming is running the story again from line one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc import loop, optim
from sftc.data import Data
from sftc.device import Device
from sftc.errors import Refused
from sftc.loop import Budget, Care, Fit, Fitted, Trainee
from sftc.losses import L1, L2SP
from sftc.objective import Learner, Live, Objective
from sftc.optim.averaging import average
from sftc.stop import Stopper
from sftc.store import Run, hash_tensors
from sftc.types import Metrics, Penalty, Predictions, Source, Task, Teacher


class Settings:
    """How a lab trains: plain values and the optim, schedule and finetune nodes of the config."""

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
        self.ema = ema
        self.l1 = l1
        self.l2_sp = l2_sp


class Watch:
    """Who looks on: gets every epoch's row and every step. This one looks away; `track` has ones that show."""

    def begin(self, run: Run, per_epoch: int, monitor: str) -> None: ...
    def tick(self, step: int, total: int, loss: float | None) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def say(self, line: str) -> None: ...
    def end(self) -> None: ...


class Lab:
    """One experiment.

    Args:
        build: () -> a fresh model, which carries its `facts`.
        open: run folder -> the Lab of that finished run.
        fork: (name, seed=, rows=, **groups) -> the Lab of a member run with its own true config.
        stop: asked after every step; what it returns is raised once all is saved.
    """

    def __init__(
        self,
        *,
        run: Run,
        data: Data,
        task: Task,
        device: Device,
        build: Callable[[], nn.Module],
        settings: Settings,
        seed: int = 0,
        rows: Tensor | None = None,
        watch: Watch | None = None,
        stop: Stopper | None = None,
        open: Callable[[str], Lab] | None = None,
        fork: Callable[..., Lab] | None = None,
    ) -> None:
        self.run = run
        self.data = data
        self.task = task
        self.device = device
        self.settings = settings
        self.seed = seed
        self.rows = rows
        self.watch = watch or Watch()
        self.stop = stop or Stopper()
        self._build = build
        self._open = open
        self._fork = fork

    def model(self) -> nn.Module:
        """A fresh model; its first weights are a function of the run's seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self._build()

    def restore(self, which: str = "model") -> nn.Module:
        """The model of this run with the weights it kept. Raises Refused: none are there, or they do not fit."""
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

    def teacher(self, run: str, taps: Sequence[str] = ()) -> Teacher:
        """A finished run as a live, frozen teacher."""
        return Live(self.open(run).restore(), self.device, taps)

    def source(self, split: str, *, train: bool = False, rows: Tensor | None = None) -> Source:
        s = self.settings
        return self.data.source(
            split,
            s.batch_size if train else s.eval_batch_size,
            train=train,
            seed=self.seed,
            device=self.device.torch,
            rows=rows,
            free_bytes=self.device.free_bytes(),
        )

    def learner(self, student: nn.Module, **more: Any) -> Learner:
        """A learner of this lab's task, with the penalties of its config."""
        return Learner(student, more.pop("task", self.task), penalties=self._penalties(student), **more)

    def _penalties(self, student: nn.Module) -> dict[str, Penalty]:
        out: dict[str, Penalty] = {}
        if self.settings.l1:
            out["l1"] = L1(self.settings.l1)
        if self.settings.l2_sp:
            # Of a new head there is no start to go back to; of a model that loaded nothing, all of it is one.
            loaded = getattr(student, "loaded", None)
            start = {n: p.detach() for n, p in student.named_parameters() if not loaded or n in loaded}
            out["l2_sp"] = L2SP(self.settings.l2_sp, start)
        return out

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
        pairs = list(sources) if sources is not None else [self._sources(rows, val_rows)]
        state = self._assemble(students, [a for a, _ in pairs], epochs)
        state.micro = self.settings.micro_batch_size
        troubles: list[str] = []
        saved = self.run.checkpoints.read(troubles.append)
        if saved is not None:
            state.load_state_dict(saved)
            self.run.forget_after(state.step)
        budget = self._budget(epochs)
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
                    log=self._log,
                    save=self.run.checkpoints.write,
                    load=self._roll_back,
                    stop=self.stop,
                    tick=self.watch.tick,
                    say=self.watch.say,
                )
        finally:
            self.watch.end()

    def _budget(self, epochs: int | None) -> Budget:
        b = self.settings.budget
        return b if epochs is None else Budget(epochs, b.max_steps, b.patience, b.target)

    def _sources(self, rows: Tensor | None, val_rows: Tensor | None) -> tuple[Source, Source]:
        rows = self.rows if rows is None else rows
        train = self.source("train", train=True, rows=rows)
        val = self.source("val") if val_rows is None else self.source("train", rows=val_rows)
        return train, val

    def _assemble(self, students: list[Learner], sources: list[Source], epochs: int | None) -> Fit:
        s = self.settings
        emas = [average(x.student, s.ema) for x in students]  # copies, so before hooks and compilation
        for x, ema in zip(students, emas, strict=True):
            self.device.place(x.student)
            if ema is not None:
                ema.to(self.device.torch)
        objective = Objective(students, self.device, self.seed)
        objective.prepare([next(iter(source.epoch(0))) for source in sources])
        steps = max(source.steps for source in sources)
        owned: set[int] = set()
        trainees = []
        for x, ema in zip(students, emas, strict=True):
            finetune = optim.finetune(s.finetune)
            finetune.begin(x.student)
            lr, decay = s.optim["lr"], s.optim["weight_decay"]
            groups = finetune.groups(x.student, lr, decay)
            for term in x.terms.values():
                groups += optim.plain_groups(term, lr, decay)
            groups = _unowned(groups, owned)
            optimizer = optim.optimizer(s.optim, groups)
            schedule = optim.schedule(s.schedule, optimizer, steps, self._budget(epochs).steps(steps) / steps)
            trainees.append(Trainee(x, optimizer, schedule, finetune, clip=s.clip, ema=ema))
        return Fit(objective, trainees, sources)

    def _roll_back(self) -> dict[str, Any] | None:
        saved = self.run.checkpoints.read(self.watch.say)
        if saved is not None:
            self.run.forget_after(saved["step"])
        return saved

    def _score(self, module: nn.Module, learner: Learner, val: Source) -> Metrics:
        meter = learner.task.meter(full=False)
        loop.predict(module, val, learner.task, self.device, meter, keep=False, stop=self.stop)
        return meter.compute()

    def _log(self, row: dict[str, Any]) -> None:
        self.run.log(row)
        self.watch.row(row)

    def predict(self, model: nn.Module, split: str, rows: Tensor | None = None, meter: Any = None) -> Predictions:
        return loop.predict(model, self.source(split, rows=rows), self.task, self.device, meter)

    def measure(self, model: nn.Module, split: str) -> tuple[Predictions, Metrics, dict[str, Any]]:
        """Predictions of a split, its metrics, and the table per class."""
        meter = self.task.meter()
        predictions = self.predict(model, split, meter=meter)
        return predictions, meter.compute(), meter.per_class()  # type: ignore[attr-defined]

    def keep(self, fitted: Fitted, **more: Any) -> None:
        """Write weights, predictions and result: after this the run is finished. The test split is read here, once."""
        if self.run.finished:
            return
        model, state = fitted.model, loop.host_state(fitted.model)
        mark = {"model": hash_tensors(state), "data": self.data.fingerprint}
        self.run.write_weights("model", state, {"which": "best on validation"})
        self.run.write_weights("last", fitted.last_state, {"which": "last step"})
        result: dict[str, Any] = {"monitor": self.task.monitor, "maximize": self.task.maximize}
        classes: dict[str, Any] = {}
        last = dict(fitted.last)
        for split in self.data.splits:
            if split != "train":
                predictions, result[split], classes[split] = self.measure(model, split)
                self.run.write_predictions(split, predictions, mark | {"split": self.data.splits[split].fingerprint()})
        if "test" in result:
            model.load_state_dict(fitted.last_state)
            last["test"] = self.measure(model, "test")[1]
            model.load_state_dict(state)
        result |= {
            "best": fitted.best,
            "last": last,
            "params": sum(p.numel() for p in model.parameters()),
            "model": getattr(model, "facts", {}),
            "seconds": fitted.seconds,
            "ended": fitted.ended,
            "fingerprints": mark,
            "per_class": classes,
            **more,
        }
        self.run.write_result(result)
        self.run.mark("finished", value=result["val"].get(self.task.monitor))
        self.run.checkpoints.drop()


def _unowned(groups: list[dict[str, Any]], owned: set[int]) -> list[dict[str, Any]]:
    """Parameters that an earlier learner does not step already: learners may share modules."""
    out = []
    for group in groups:
        params = [p for p in group["params"] if id(p) not in owned]
        owned.update(map(id, params))
        if params:
            out.append({**group, "params": params})
    return out
