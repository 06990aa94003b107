"""Config -> Lab, and the commands over it. Configs stop here: everything to the left takes plain arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftc import data as datasets
from sftc import environment, models, optim, report, track
from sftc.data import Data
from sftc.device import Device
from sftc.errors import Refused, Stopped, choose
from sftc.lab import Lab, Settings, Watch
from sftc.loop import Budget
from sftc.stop import Stopper
from sftc.store import Run, write_tensors
from sftc.strategies import STRATEGIES
from sftc.tasks import TASKS
from sftc.types import Strategy, Task

Config = dict[str, Any]
NOT_STORED = ("out", "resume", "debug", "experiment", "quiet")  # of the command, not of the run


# -- from nodes to parts ------------------------------------------------------------------------------------------------


def check(cfg: Config) -> None:
    """Everything that can be refused before any data is read. Raises Refused."""
    if cfg.get("resume"):
        return
    _strategy(cfg)
    Device(**cfg["device"])
    models.check(cfg["model"])
    optim.check(cfg["optim"], cfg["schedule"], cfg["finetune"])
    datasets.check(cfg["data"])
    choose("tracker", cfg["tracker"]["name"], track.TRACKERS)
    if cfg["max_steps"] is None and cfg["epochs"] < 1:
        raise Refused("epochs=0 and no max_steps: nothing to train; set one of them")


def _strategy(cfg: Config) -> Strategy:
    node = dict(cfg["strategy"])
    name = choose("strategy", node.pop("name"), STRATEGIES)
    return STRATEGIES[name](**node)


def _task(cfg: Config, data: Data) -> Task:
    """The task the data asks for, with the configured loss."""
    node = dict(cfg["loss"])
    more: dict[str, Any] = {"loss": node.pop("name"), "monitor": cfg["monitor"]}
    smoothing = node.pop("smoothing", 0.0)
    if data.kind == "classes":
        more["smoothing"] = smoothing
    elif smoothing:
        raise Refused(f"loss.smoothing={smoothing} is for classes; the data holds {data.kind}: leave it at 0")
    if data.kind == "values":
        return TASKS["values"](data.class_names, mean=data.target_mean, std=data.target_std, **more, **node)
    return TASKS[data.kind](data.class_names, class_weight=data.class_weights, **more, **node)


def _settings(cfg: Config) -> Settings:
    return Settings(
        optim=cfg["optim"],
        schedule=cfg["schedule"],
        finetune=cfg["finetune"],
        budget=Budget(cfg["epochs"], cfg["max_steps"], cfg["patience"], cfg["target"]),
        batch_size=cfg["batch_size"],
        eval_batch_size=cfg["eval_batch_size"],
        micro_batch_size=cfg["micro_batch_size"],
        clip=cfg["clip"],
        ema=cfg["ema"],
        l1=cfg["penalty"]["l1"],
        l2_sp=cfg["penalty"]["l2_sp"],
    )


def _bare(node: Config) -> Config:
    """A model node without its first weights: what a stored run is rebuilt from, with no network and no other file."""
    return {**node, "pretrained": "false", "checkpoint": None}


def _resolve_model(node: Config, model: nn.Module) -> Config:
    """Every `auto` of a model node replaced by what was chosen."""
    facts = getattr(model, "facts", {})
    chosen = {k: facts[k] for k in ("input_size", "mean", "std") if k in facts and k in node}
    pretrained = {"pretrained": "true" if facts.get("pretrained") == "loaded" else "false"}
    return {**node, **chosen, **(pretrained if "pretrained" in node else {})}


def _resolve_data(node: Config, data: Data) -> Config:
    out = dict(node)
    if out.get("root"):
        out["root"] = os.path.abspath(os.path.expanduser(out["root"]))
    if "size" in out and len(data.shape) == 3:
        out["size"] = data.shape[-1]
    return {**out, "download": False} if "download" in out else out


def _make_model(node: Config, data: Data) -> Callable[[], nn.Module]:
    return lambda: models.build(node, out_dim=data.out_dim, shape=data.shape)


def _first_model(cfg: Config, data: Data) -> models.Vision:
    """The model as it starts. Made before the folder is, so that what cannot be built leaves nothing behind."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg["seed"])
        return models.build(cfg["model"], out_dim=data.out_dim, shape=data.shape)


def _about(facts: Config) -> str:
    """One line on the model that was built."""
    rest = "; ".join(f"{k} {v}" for k, v in facts.items() if k not in ("family", "name", "params", "mean", "std"))
    return f"model {facts['name']}: {facts['params']:,} parameters; {rest}"


def _once(first: nn.Module | None, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The first call gives the model that was already built to see that it can be; the same seed made it."""
    held = [first] if first is not None else []
    return lambda: held.pop() if held else build()


# -- labs ---------------------------------------------------------------------------------------------------------------


class Bench:
    """What the labs of one process share: the device, who looks on, what may stop them, data already read."""

    def __init__(self, device: Device, watch: Watch | None = None, stop: Stopper | None = None) -> None:
        self.device = device
        self.watch = watch
        self.stop = stop
        self._data: dict[str, Data] = {}

    def data(self, cfg: Config) -> Data:
        key = repr(sorted(cfg["data"].items()))
        if key not in self._data:
            size = cfg["model"].get("input_size")
            self._data[key] = datasets.build(cfg["data"], model_size=size if isinstance(size, int) else None)
        return self._data[key]

    def lab(self, cfg: Config, run: Run, first: nn.Module | None = None) -> Lab:
        """The lab of a run whose config is resolved. `first` is what its first `model()` gives."""
        data = self.data(cfg)
        rows = run.rows_of("train") if run.rows_meta().get("own_rows") == "true" else None
        return Lab(
            run=run,
            data=data,
            task=_task(cfg, data),
            device=self.device,
            build=_once(first, _make_model(cfg["model"], data)),
            settings=_settings(cfg),
            seed=cfg["seed"],
            rows=rows,
            watch=self.watch,
            stop=self.stop,
            open=self.open,
            fork=lambda name, **changes: self.fork(cfg, run, name, **changes),
        )

    def start(self, cfg: Config, out: Path, command: str, overrides: list[str]) -> Lab:
        """A new run. All that can go wrong with data and model goes wrong before its folder is made."""
        data = self.data(cfg)
        _task(cfg, data)
        first = _first_model(cfg, data)
        stored = {k: v for k, v in cfg.items() if k not in NOT_STORED}
        stored["data"] = _resolve_data(cfg["data"], data)
        stored["model"] = _resolve_model(cfg["model"], first)
        stored["device"] = self.device.resolved()
        self._data[repr(sorted(stored["data"].items()))] = data
        run = Run.create(out, stored)
        _write_rows(run, data)
        notes = [*self.device.notes, *data.notes, _about(first.facts)]
        run.write_json("environment.json", environment.describe(self.device, command, overrides) | {"notes": notes})
        return self.lab(stored, run, first)

    def resume(self, run: Run) -> Lab:
        """The lab of a run that is not finished, with the settings stored in it."""
        cfg = _stored(run)
        fingerprint = self.data(cfg).fingerprint
        if run.rows_meta().get("data", fingerprint) != fingerprint:
            raise Refused(f"the data of {run.path} has changed since it started; train a new run")
        return self.lab(cfg, run)

    def open(self, path: str | Path) -> Lab:
        """The lab of an existing run, from its folder alone."""
        run = Run.open(path)
        cfg = _stored(run)
        return self.lab({**cfg, "model": _bare(cfg["model"])}, run)

    def fork(
        self, cfg: Config, parent: Run, name: str, *, seed: int | None = None, rows: Tensor | None = None, **groups: Any
    ) -> Lab:
        """A member of `parent`: a run of its own whose config says truly how it was made; the same one on replay."""
        path = parent.member(name)
        if (path / "config.yaml").is_file():
            run = Run.open(path)
            return self.lab(run.config, run)
        cfg = {**cfg, "strategy": {"name": "plain"}, **groups}
        if seed is not None:
            cfg["seed"] = seed
        data = self.data(cfg)
        run = Run.create(path, cfg)
        _write_rows(run, data, rows)
        return self.lab(cfg, run)


def _stored(run: Run) -> Config:
    """The config of a run, checked for the nodes that every run has."""
    cfg = run.config
    lacking = [k for k in ("data", "model", "device", "loss", "strategy", "optim", "schedule") if k not in cfg]
    if lacking:
        raise Refused(f"{run.path / 'config.yaml'} lacks {', '.join(lacking)}; it was not written by sftc train")
    return cfg


def _write_rows(run: Run, data: Data, rows: Tensor | None = None) -> None:
    own = {s: split.rows for s, split in data.splits.items() if s != "test"}
    mark = {"data": data.fingerprint, "own_rows": "false"}
    if rows is not None:
        own["train"], mark["own_rows"] = rows, "true"
    run.write_rows(own, mark)


# -- commands -----------------------------------------------------------------------------------------------------------


def train(cfg: Config, out: Path, overrides: list[str], command: str) -> float | None:
    """Train a new run in `out`, or go on with the one named by `resume`.

    Returns:
        The monitor on validation.

    Raises:
        Refused: nothing was written. Stopped: the run is saved and says why.
    """
    old = Run.open(cfg["resume"]) if cfg["resume"] else None
    if old is not None and old.finished:
        report.show(f"run {old.path} is finished already", report.scores(old.result))
        return _monitor(old)
    settings = cfg if old is None else _stored(old)
    device = Device(**settings["device"])
    with device.active(), Stopper(settings["max_minutes"]).listening() as stop:
        bench = Bench(device, track.make(settings["tracker"]["name"], cfg["quiet"]), stop)
        lab = bench.start(cfg, out, command, overrides) if old is None else bench.resume(old)
        about = lab.run.environment
        if not cfg["quiet"]:
            report.show(*about["notes"])
        _tell(_strategy(settings), lab)
    lab.run.write_page("README.md", report.card(lab.run, about["command"], about["notes"]))
    if not cfg["quiet"]:
        report.show("", report.scores(lab.run.result), "", f"run folder: {lab.run.path}")
    return _monitor(lab.run)


def _tell(strategy: Strategy, lab: Lab) -> None:
    """Run the story; however it ends, status.json says so."""
    run = lab.run
    run.mark("running")
    try:
        strategy.run(lab)
    except Stopped as e:
        run.mark(e.state, error=str(e))
        raise Stopped(f"{e}; run folder {run.path}", e.code, e.state) from None
    except BaseException as e:
        run.mark("failed", error=f"{type(e).__name__}: {e}".split("\n")[0])
        raise


def _monitor(run: Run) -> float | None:
    return run.result["val"].get(run.result["monitor"])


def evaluate(cfg: Config) -> None:
    """`sftc eval run=RUN`: rebuild the model from the folder alone; on its own data, or on another of the same classes."""
    run = Run.open(cfg["run"])
    stored = _stored(run)
    device = Device(**(cfg.get("device") or stored["device"]))
    with device.active():
        lab = Bench(device).lab({**stored, "model": _bare(stored["model"])}, run)
        model = lab.restore()
        if cfg.get("data"):
            lab = _elsewhere(lab, cfg["data"], run)
        split = cfg["split"]
        if split not in lab.data.splits:
            raise Refused(f"split={split} is not there (data {lab.data.name} has {', '.join(lab.data.splits)})")
        _, metrics, classes = lab.measure(model, split)
    known = run.result.get(split) if run.finished and not cfg.get("data") else None
    parts: list[Any] = [report.evaluation(metrics, known, split)]
    if not cfg.get("quiet"):
        about = f"run {run.path}: {stored['model']['name']} on {lab.data.name} ({device.describe()})"
        parts = [about, "", *parts, *(["", report.per_class(classes)] if classes else [])]
    report.show(*parts)


def _elsewhere(lab: Lab, node: Config, run: Run) -> Lab:
    """The same model on another data set: classes must be the same, inputs are scaled as they were in training."""
    data = datasets.build(node, model_size=lab.data.shape[-1] if len(lab.data.shape) == 3 else None)
    if data.kind != lab.data.kind or data.class_names != lab.data.class_names:
        mine, theirs = ", ".join(lab.data.class_names[:5]), ", ".join(data.class_names[:5])
        raise Refused(f"data={data.name} has other classes ({theirs}, ...) than the run learned ({mine}, ...)")
    if data.shape[0] != lab.data.shape[0] or len(data.shape) != len(lab.data.shape):
        raise Refused(f"data={data.name} has rows of shape {data.shape}; the run learned {lab.data.shape}")
    data.input_mean, data.input_std = lab.data.input_mean, lab.data.input_std
    return Lab(run=run, data=data, task=lab.task, device=lab.device, build=lab.model, settings=lab.settings)


def export(cfg: Config) -> None:
    """`sftc export run=RUN [out=FOLDER]`: model.safetensors and config.json that need nothing else of the run.

    The safetensors file alone is enough: its metadata holds the same config, classes, scaling and numbers.
    """
    run = Run.open(cfg["run"])
    stored = _stored(run)
    result = run.result
    lab = Bench(Device("cpu")).lab({**stored, "model": _bare(stored["model"])}, run)
    state = lab.restore(cfg["weights"]).state_dict()
    folder = Path(cfg["out"] or run.path / "export")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"out={folder} is there already and is never overwritten; choose another folder")
    data = lab.data
    scaling = ("target_mean", "target_std", "input_mean", "input_std")
    which = result if cfg["weights"] == "model" else result["last"]
    about = {
        "model": _bare(stored["model"]),
        "classes": data.class_names,
        "kind": data.kind,
        "shape": list(data.shape),
        **{k: None if (t := getattr(data, k)) is None else t.tolist() for k in scaling},
        "result": {k: which[k] for k in ("val", "test") if k in which},
        "fingerprints": result["fingerprints"],
    }
    write_tensors(folder / "model.safetensors", state, {"sftc": json.dumps(about)})
    Run(folder).write_json("config.json", about)
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    report.show(folder if cfg.get("quiet") else f"wrote {folder}: model.safetensors ({size}) and config.json")
