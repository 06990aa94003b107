"""From configs and run folders to labs: start, resume, open, fork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftc import data as datasets
from sftc import environment, report
from sftc.build import halves, parts, trust
from sftc.build.facts import FILE, Facts
from sftc.build.parts import Config
from sftc.build.trust import NEEDED, NOT_STORED, blaming, stored_config
from sftc.data import Data
from sftc.data.rows import digest
from sftc.device import Device
from sftc.errors import Refused
from sftc.lab import Lab, Watch, semi
from sftc.models import weights
from sftc.stop import Stopper
from sftc.store import Run, hash_tensors, plain
from sftc.store.forms import ORIGIN, expect
from sftc.store.run import GROUPS


class Bench:
    """What the labs of one process share: the device, who looks on, what may stop them, data already read."""

    def __init__(
        self, device: Device, watch: Watch | None = None, stop: Stopper | None = None, shared: Path | None = None
    ) -> None:
        self.device = device
        self.watch = watch or Watch()
        self.stop = stop or Stopper()
        self.shared = shared  # folder of runs that others use too; None: beside each run
        self._data: dict[str, Data] = {}

    def data(self, cfg: Config) -> Data:
        key = _key(cfg)
        if key not in self._data:
            quantiles = cfg["loss"].get("quantiles")
            self._data[key] = datasets.build(cfg["data"], model_size=parts.largest_input(cfg), quantiles=quantiles)
        return self._data[key]

    def lab(
        self,
        cfg: Config,
        run: Run,
        first: nn.Module | None = None,
        facts: Facts | None = None,
        began: Config | None = None,
    ) -> Lab:
        """The lab of a run whose config is resolved.

        Args:
            first: what its first `model()` gives.
            facts: enough for model and task; its data is then read only when somebody asks for it.
            began: origin of the model that the run began with, if `cfg` builds it without.
        """
        data = self.data(cfg) if facts is None else facts
        rows = run.rows_of("train") if run.rows_meta().get("own_rows") == "true" else None
        return Lab(
            run=run,
            data=data if isinstance(data, Data) else lambda: self.data(cfg),
            facts=data,
            task=parts.task(cfg, data),
            device=self.device,
            build=parts.once(first, parts.make_model(cfg["model"], data, began, run)),
            settings=parts.settings(cfg),
            seed=cfg["seed"],
            data_seed=cfg.get("data_seed"),
            split_seed=cfg["data"]["split_seed"],
            rows=rows,
            watch=self.watch,
            stop=self.stop,
            open=self.open,
            fork=lambda name, **changes: self.fork(cfg, run, name, **changes),
            share=lambda name, **changes: self.share(cfg, run, name, **changes),
            card=report.write_card,
        )

    def start(self, cfg: Config, out: Path, command: str, overrides: list[str], alone: bool = True) -> Lab:
        """A new run. All that can go wrong with data and model goes wrong before its folder is made.

        Args:
            alone: take the run's lock; False where the caller holds it.
        """
        cfg, settled = halves.settle(cfg, self.data)
        data = self.data(cfg)
        parts.task(cfg, data)
        semi.check(cfg["semi"], data)
        first = parts.first_model(cfg, data)
        self.device.settle(parts.multiply_adds(first, data.form) * cfg["batch_size"])
        parts.check_rows(first, data, cfg["batch_size"])
        # Read now what stays in memory: a broken picture leaves no folder, and where rows live is among the notes.
        for split in ("train", "val"):
            data.source(split, 1, train=False, seed=0, device=self.device.torch, free_bytes=self.device.free_bytes())
        _ = data.fingerprint  # looks at every file, which may take minutes: before there is a folder
        stored = self._resolved(cfg, data, first)
        notes = [*settled, *self.device.notes, *data.notes, parts.about(first.facts)]
        about = environment.describe(self.device, command, overrides) | {"notes": notes, "model": parts.origin(first)}

        def fill(run: Run) -> None:
            _write_data(run, data)
            run.write_json("environment.json", about)

        return self.lab(stored, Run.create(out, stored, fill, alone), first)

    def _resolved(self, cfg: Config, data: Data, first: nn.Module) -> Config:
        """What is written to config.yaml: every `auto` replaced by what was chosen."""
        stored = {k: v for k, v in cfg.items() if k not in NOT_STORED}
        stored["data"] = parts.resolve_data(cfg["data"], data)
        stored["model"] = parts.resolve_model(cfg["model"], first)
        stored["strategy"] = parts.resolve_strategy(cfg["strategy"])
        stored["device"] = self.device.resolved()
        self._data[_key(stored)] = data
        return stored

    def fuse(self, node: Config, runs: list[Run], out: Path, command: str, overrides: list[str]) -> Lab:
        """A new run that fuses finished ones: about the data of the first, which is not read unless somebody asks."""
        first = runs[0]
        stored = {**stored_config(first), "strategy": node}
        facts = Facts.read(first)
        about = environment.describe(self.device, command, overrides) | {"notes": []}

        def fill(run: Run) -> None:
            run.write_json(FILE, facts.plain())
            learned = [rows for each in runs if (rows := each.rows_of("train")) is not None]
            rows = {"train": torch.cat(learned).unique()} if learned else {}
            rows |= {key: some for key in ("val", GROUPS) if (some := first.rows_of(key)) is not None}
            run.write_rows(rows, first.rows_meta())
            run.write_json("environment.json", about)

        return self.lab(stored, Run.create(out, stored, fill, alone=True), facts=facts)

    def resume(self, run: Run) -> Lab:
        """The lab of a run that is not finished, with the settings stored in it."""
        run.lock()
        return self._go_on(run)

    def _go_on(self, run: Run) -> Lab:
        with blaming(run):
            cfg, known = stored_config(run), Facts.read(run)
            begun = run.finished or bool(run.checkpoints.files())
            # The weights are in there; those it started from may be gone.
            model = parts.bare(cfg["model"]) if begun else cfg["model"]
            parts.check({**cfg, "model": model})
            trust.check_model(run, cfg, known)
            data = self.data(cfg)
            if run.rows_meta().get("data", data.fingerprint) != data.fingerprint:
                raise Refused(f"the data of {run.path} has changed since it started; train a new run")
            known.expect(data)
            began = run.environment.get("model") if begun else None
            if began is not None:
                expect(run.path / "environment.json", began, ORIGIN)
            return self.lab({**cfg, "model": model}, run, began=began)

    def open(self, path: str | Path) -> Lab:
        """The lab of an existing run, from its folder alone: its data need not be there any more."""
        run = Run.open(path)
        with blaming(run):
            cfg, known = stored_config(run), Facts.read(run)
            trust.check_model(run, cfg, known, "model")
            return self.lab({**cfg, "model": parts.bare(cfg["model"])}, run, facts=known)

    def fork(
        self, cfg: Config, parent: Run, name: str, *, seed: int | None = None, rows: Tensor | None = None, **groups: Any
    ) -> Lab:
        """A member of `parent`: a run of its own whose config says truly how it was made; the same one on replay."""
        path = parent.member(name)
        if (path / "config.yaml").is_file():
            run = Run.open(path)
            _complete(run)
            return self._go_on(run)
        cfg = _changed(cfg, groups if seed is None else {**groups, "seed": seed})
        data = self.data(cfg)
        first = parts.first_model(cfg, data)
        stored = self._resolved(cfg, data, first)
        about = parent.environment | {"notes": [parts.about(first.facts)], "model": parts.origin(first)}

        def fill(run: Run) -> None:
            _write_data(run, data, rows)
            run.write_json("environment.json", about)

        return self.lab(stored, Run.create(path, stored, fill), first)

    def share(self, cfg: Config, parent: Run, name: str, *, reuse: bool = True, **groups: Any) -> Lab:
        """A plain run that others may use too, in the place runs share; `parent` refers to it as a member.

        Found by what it is made of: config and data. Locked until it is finished, so that of several jobs that want it
        one makes it and the others wait.
        """
        if not reuse:
            return self.fork(cfg, parent, name, **groups)
        cfg = _changed(cfg, groups)
        path = parent.reference(name)
        if path is None or not Run(path).finished:
            key = identity(cfg, self.data(cfg))
            place = (self.shared or parent.path.parent / "shared") / f"{name}-{cfg['model']['name']}-{key}"
            if path is not None and path.resolve() != place.resolve():  # to be read perhaps, never to be written to
                raise Refused(f"{parent.path} refers to {path} as {name}: there is no finished run; train a new one")
            path = place
            parent.refer(name, path)
        run = Run(path)
        run.wait(self.stop, self.watch.say)
        if run.finished:
            _complete(run)
            run.unlock()
            return self.open(path)
        try:
            if (path / "config.yaml").is_file():
                return self._go_on(run)
            home = self.start(cfg, path, parent.environment["command"], [], alone=False)
        except Refused:
            run.discard()
            run.unlock()
            raise
        run.hand_over(home.run)
        return home


def _key(cfg: Config) -> str:
    """What decides which data a config means."""
    return repr((sorted(cfg["data"].items()), cfg["loss"].get("quantiles")))


def identity(cfg: Config, data: Data) -> str:
    """What decides how a run ends, as a short hash: its config, less what only watches it, and its data."""
    nodes = {k: cfg[k] for k in NEEDED if k not in ("tracker", "checkpoint", "max_minutes", "data", "eval_batch_size")}
    if cfg["model"].get("checkpoint"):  # a file may be written anew, and has many paths
        nodes["model"] = {**cfg["model"], "checkpoint": hash_tensors(weights.read(cfg["model"]["checkpoint"]))}
    return digest(plain({**nodes, "augment": cfg["data"].get("augment")}), data.fingerprint)[:12]


def _changed(cfg: Config, groups: Config) -> Config:
    """The config of a plain run made inside another, with other groups."""
    cfg = {**cfg, "strategy": {"name": "plain"}, **groups}
    if cfg["loss"]["name"] == "nll" and not cfg["model"].get("log_softmax"):
        cfg["loss"] = {**cfg["loss"], "name": "cross_entropy"}  # the same, for a model that does not end in LogSoftmax
    return cfg


def _complete(run: Run) -> None:
    """What was still to be done for a member when a process died between "finished" and its end."""
    if run.finished and run.checkpoints.folder.exists():
        run.checkpoints.drop()


def _write_data(run: Run, data: Data, rows: Tensor | None = None) -> None:
    run.write_json(FILE, Facts.of(data).plain())
    own = {s: split.rows for s, split in data.splits.items() if s != "test"}
    tables = {key: data.splits[split].table.fingerprint() for key, split in (("table", "train"), ("val_table", "val"))}
    mark = {"data": data.fingerprint, **tables, "own_rows": "false"}
    if rows is not None:
        own["train"], mark["own_rows"] = rows, "true"
    apart = getattr(data.splits["val"].table, "apart", None)
    if apart is not None and apart.groups is not None:
        own[GROUPS] = apart.groups[own["val"]]
    run.write_rows(own, mark)
