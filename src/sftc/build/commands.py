"""`sftc train | eval | export`: what the command line calls."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from sftc import data as datasets
from sftc import report, track
from sftc.build import parts
from sftc.build.bench import Bench, stored_config
from sftc.build.parts import Config
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import Lab
from sftc.stop import Stopper
from sftc.store import Run, write_tensors
from sftc.types import Strategy


def train(cfg: Config, out: Path, overrides: list[str], command: str) -> float | None:
    """Train a new run in `out`, or go on with the one named by `resume` (auto: with `out`, if it is a run already).

    Returns:
        The monitor on validation.

    Raises:
        Refused: nothing was written. Stopped: the run is saved and says why.
    """
    old = _old(cfg, out, overrides)
    if old is not None and old.finished:
        report.show(f"run {old.path} is finished already", report.scores(old.result))
        return _monitor(old)
    settings = cfg if old is None else stored_config(old)
    device = Device(**settings["device"])
    with device.active(), Stopper(settings["max_minutes"]).listening() as stop, contextlib.ExitStack() as stack:
        bench = Bench(device, track.make(settings["tracker"]["name"], cfg["quiet"]), stop)
        lab = bench.start(cfg, out, command, overrides) if old is None else bench.resume(old)
        stack.callback(lab.run.unlock)
        about = lab.run.environment
        if not cfg["quiet"]:
            report.show(*about["notes"])
        _tell(parts.strategy(settings), lab)
        lab.run.write_page("README.md", report.card(lab.run, about["command"], about["notes"]))
    if not cfg["quiet"]:
        report.show("", report.scores(lab.run.result), "", f"run folder: {lab.run.path}")
    return _monitor(lab.run)


def _old(cfg: Config, out: Path, overrides: list[str]) -> Run | None:
    """The run to go on with. A batch queue sends the same command again, so `auto` refuses another one."""
    if not cfg["resume"]:
        return None
    if cfg["resume"] != "auto":
        return Run.open(cfg["resume"])
    if not (out / "config.yaml").is_file():
        return None
    run = Run.open(out)
    began = run.environment.get("overrides", overrides)
    for other in sorted(set(overrides) ^ set(began)):
        if not other.startswith(("quiet=", "out=")):
            when = "now" if other in overrides else "when it began"
            raise Refused(f"resume=auto: {out} is another command's run ({other} only {when}); choose another out=")
    return run


def _tell(strategy: Strategy, lab: Lab) -> None:
    """Run the story; however it ends, status.json says so, unless the disk does not even take that."""
    run = lab.run
    run.mark("running")
    try:
        strategy.run(lab)
    except BaseException as e:
        state = e.state if isinstance(e, Stopped) else "stopped" if isinstance(e, SystemExit) else "failed"
        text = str(e) if isinstance(e, Stopped) else f"{type(e).__name__}: {e}".split("\n")[0]
        with contextlib.suppress(Stopped):
            run.mark(state, error=text)
        if isinstance(e, Stopped):
            raise Stopped(f"{e}; run folder {run.path}", e.code, e.state) from None
        raise


def _monitor(run: Run) -> float | None:
    return run.result["val"].get(run.result["monitor"])


def evaluate(cfg: Config) -> None:
    """`sftc eval run=RUN`: rebuild the model from the folder alone; on its own data, or on others of its classes."""
    run = Run.open(cfg["run"])
    stored = stored_config(run)
    device = Device(**(cfg.get("device") or stored["device"]))
    with device.active():
        lab = Bench(device).lab({**stored, "model": parts.bare(stored["model"])}, run)
        model = lab.restore()
        if cfg.get("data"):
            lab = _elsewhere(lab, cfg["data"], run)
        split = cfg["split"]
        if split not in lab.data.splits:
            raise Refused(f"split={split} is not there (data {lab.data.name} has {', '.join(lab.data.splits)})")
        _, metrics, classes = lab.measure(model, split)
    known = run.result.get(split) if run.finished and not cfg.get("data") else None
    shown: list[Any] = [report.evaluation(metrics, known, split)]
    if not cfg.get("quiet"):
        about = f"run {run.path}: {stored['model']['name']} on {lab.data.name} ({device.describe()})"
        shown = [about, "", *shown, *(["", report.per_class(classes)] if classes else [])]
    report.show(*shown)


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
    stored = stored_config(run)
    result = run.result
    lab = Bench(Device("cpu")).lab({**stored, "model": parts.bare(stored["model"])}, run)
    state = lab.restore(cfg["weights"]).state_dict()
    folder = Path(cfg["out"] or run.path / "export")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"out={folder} is there already and is never overwritten; choose another folder")
    data = lab.data
    scaling = ("target_mean", "target_std", "input_mean", "input_std")
    which = result if cfg["weights"] == "model" else result["last"]
    about = {
        "model": parts.bare(stored["model"]),
        "classes": data.class_names,
        "kind": data.kind,
        "shape": list(data.shape),
        **{k: None if (t := getattr(data, k)) is None else t.tolist() for k in scaling},
        "result": {k: which[k] for k in ("val", "test") if k in which},
        "fingerprints": result["fingerprints"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", state, {"sftc": json.dumps(about)})
    Run(folder).write_json("config.json", about)
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    report.show(folder if cfg.get("quiet") else f"wrote {folder}: model.safetensors ({size}) and config.json")
