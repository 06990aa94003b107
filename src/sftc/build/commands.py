"""`sftc train | eval | export`: what the command line calls."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sftc import data as datasets
from sftc import models, pictures, report, scenes, track
from sftc.build import parts, trust
from sftc.build.bench import Bench
from sftc.build.facts import Facts
from sftc.build.parts import Config
from sftc.build.trust import blaming, stored_config
from sftc.data import Data
from sftc.device import Device
from sftc.errors import Refused, Stopped
from sftc.lab import Lab
from sftc.stop import Stopper
from sftc.store import Run, write_tensors
from sftc.types import Metrics, Strategy


def train(cfg: Config, out: Path, overrides: list[str], command: str) -> float | None:
    """Train a new run in `out`, or go on with the one named by `resume` (auto: with `out`, if it is a run already).

    Returns:
        The monitor on validation.

    Raises:
        Refused: nothing was written. Stopped: the run is saved and says why.
    """
    old = _old(cfg, out, overrides)
    if old is not None:
        with blaming(old):
            if old.finished:
                scores = report.scores(old.result)
                _complete(old)
                report.show(f"run {old.path} is finished already", scores)
                return _monitor(old)
    settings = cfg if old is None else stored_config(old)
    with contextlib.nullcontext() if old is None else blaming(old):
        device = Device(**settings["device"])
    with device.active(), Stopper(settings["max_minutes"]).listening() as stop, contextlib.ExitStack() as stack:
        bench = Bench(device, track.make(settings["tracker"]["name"], cfg["quiet"]), stop, _shared(cfg, out))
        lab = bench.start(cfg, out, command, overrides) if old is None else bench.resume(old)
        stack.callback(lab.run.unlock)
        about = lab.run.environment
        if not cfg["quiet"]:
            report.show(*about["notes"], *report.skipped(lab.data.skipped))
        try:
            _tell(parts.strategy(lab.run.config), lab)
        except Refused:
            if old is None:  # what was refused before anything was learned leaves no folder
                lab.run.discard()
            raise
        _show(lab)
    report.show(*report.skipped(lab.run.skipped))
    _end(lab.run, cfg["quiet"])
    return _monitor(lab.run)


def fuse(cfg: Config, out: Path, overrides: list[str], command: str) -> float | None:
    """`sftc fuse runs=[RUN,RUN] fuse=RULE`: a run that answers as its members do together.

    Raises:
        Refused: what cannot be fused, naming the culprit; no folder is left.
    """
    runs = [Run.open(path) for path in parts.found_runs(cfg["runs"])]
    if not runs:
        raise Refused("runs=[] names no run: runs=[RUN,RUN], finished runs, patterns (outputs/*) or sweeps")
    stored = stored_config(runs[0])
    device = Device(**(cfg.get("device") or stored["device"]))
    node = {"name": "ensemble", "members": "runs", "n": max(2, len(runs)), "models": [], "lockstep": False}
    node |= {"runs": [os.path.abspath(run.path) for run in runs], "each": [], "error": "linear"}
    node |= {k: cfg[k] for k in ("fuse", "temperature", "leaks")}
    with device.active(), Stopper().listening() as stop, contextlib.ExitStack() as stack:
        bench = Bench(device, track.make("none", cfg["quiet"]), stop)
        lab = bench.fuse(node, runs, out, command, overrides)
        stack.callback(lab.run.unlock)
        try:
            _tell(parts.strategy({"strategy": node}), lab)
        except BaseException:  # nothing is learned yet that could be gone on with
            lab.run.discard()
            raise
        _show(lab)
    _end(lab.run, cfg["quiet"])
    return _monitor(lab.run)


def _show(lab: Lab) -> None:
    """Pictures of what was said about pixels, and the card again, which shows them."""
    if lab.facts.kind == "pixels" and scenes.draw(lab) is None:
        report.write_card(lab.run)


def _end(run: Run, quiet: bool) -> None:
    """The tables at the end of a run, and the pictures of a team."""
    result = run.result
    fused = "fused" in result
    tables: list[Any] = [] if fused else ["", report.scores(result)]
    if "team" in result:
        tables += ["", report.team(result["team"], result["monitor"])]
    if fused:
        tables += ["", *report.fused(result)]
    if not quiet:
        report.show(*tables)
    lacking = pictures.draw(run) if fused else None
    if fused:
        report.write_card(run)  # again: now it shows them
    if not quiet:
        report.show(*(["", lacking] if lacking else []), "", f"run folder: {run.path}")


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


def _shared(cfg: Config, out: Path) -> Path | None:
    """Where runs made for others too live: of all runs under outputs, there; else beside the run, or the sweep."""
    outputs = next((parent for parent in out.parents if parent.name == "outputs"), None)
    if outputs is None and (cfg["out"] or cfg["resume"]):
        return None
    return (outputs or out.parent.parent) / "shared"


def _complete(run: Run) -> None:
    """What was still to be done when a process died between "finished" and its own end."""
    carded = (run.path / "README.md").exists()
    drawn = not run.fused or "cost.png" in run.pictures  # the last one
    if lost_scenes := Facts.read(run).kind == "pixels" and "scenes.png" not in run.pictures and not pictures.lacking():
        carded = False
    if run.checkpoints.folder.exists() or not carded or not drawn:
        with contextlib.ExitStack() as stack:
            run.lock()
            stack.callback(run.unlock)
            run.checkpoints.drop()
            if not drawn:
                pictures.draw(run)
            if lost_scenes:
                device = Device(**stored_config(run)["device"])
                with device.active(), contextlib.suppress(Refused):  # its data may be gone by now
                    scenes.draw(Bench(device).open(str(run.path)))
            if not (carded and drawn):
                report.write_card(run)


def _tell(strategy: Strategy, lab: Lab) -> None:
    """Run the story; however it ends, status.json says so, unless the disk does not even take that."""
    run = lab.run
    run.mark("running")
    try:
        strategy.run(lab)
    except BaseException as e:
        state = e.state if isinstance(e, Stopped) else "stopped" if isinstance(e, SystemExit) else "failed"
        text = str(e) if isinstance(e, Stopped) else f"{type(e).__name__}: {e}".split("\n")[0]
        with contextlib.suppress(Stopped, Refused):  # where the folder was, something else may be by now
            if not run.finished:  # a signal after that: all is kept, and must not be trained again
                run.mark(state, error=text)
        if isinstance(e, Stopped):
            way = f"resume={run.path} goes on from here" if e.state == "stopped" else f"run folder {run.path}"
            raise Stopped(f"{e}; {way}", e.code, e.state) from None
        raise


def _monitor(run: Run) -> float | None:
    return run.result["val"].get(run.result["monitor"])


def evaluate(cfg: Config) -> None:
    """`sftc eval run=RUN`: rebuild the model from the folder alone; on its own data, or on others of its classes."""
    run = Run.open(cfg["run"])
    with blaming(run):
        _evaluate(cfg, run)


def _evaluate(cfg: Config, run: Run) -> None:
    stored = stored_config(run)
    device = Device(**(cfg.get("device") or stored["device"]))
    with device.active():
        facts = Facts.read(run)
        trust.check_model(run, stored, facts, "model")
        data = _data_for(cfg.get("data") or stored["data"], facts, stored["loss"].get("quantiles"))
        lab = _opened(run, stored, device, facts, data)
        split = cfg["split"]
        if split not in data.splits:
            raise Refused(f"split={split} is not there (data {data.name} has {', '.join(data.splits)})")
        _, metrics, classes = lab.measure(lab.restore(), split, keep=False)
        known, remark = _stored_metrics(run, data, split) if not cfg.get("data") else (None, "")
    report.show(*report.skipped(data.skipped))
    if cfg.get("data") and not cfg.get("quiet"):
        report.show(*data.notes)
    if cfg.get("quiet"):
        report.show(*(f"{name} {value:.6g}" for name, value in metrics.items()))
        return
    about = f"run {run.path}: {stored['model']['name']} on {data.name} ({device.describe()})"
    report.show(about, *([remark] if remark else []), "", report.evaluation(metrics, known, split))
    if classes:
        report.show("", report.per_class(classes))


def _data_for(node: Config, facts: Facts, quantiles: list[float] | None) -> Data:
    """A data set of the same classes as the run's, its inputs scaled as they were in training."""
    size = facts.shape[-1] if len(facts.shape) == 3 else None
    data = datasets.build(node, model_size=size, like=facts, quantiles=quantiles)
    if data.kind != facts.kind or data.class_names != facts.class_names:
        mine, theirs = ", ".join(facts.class_names[:5]), ", ".join(data.class_names[:5])
        raise Refused(f"data={data.name} has other classes ({theirs}, ...) than the run learned ({mine}, ...)")
    if not data.form.fits(facts.form):
        raise Refused(f"data={data.name} has rows of another form ({data.form}) than the run learned ({facts.form})")
    data.input_mean, data.input_std = facts.input_mean, facts.input_std
    return data


def _opened(run: Run, stored: Config, device: Device, facts: Facts, data: Any) -> Lab:
    """A lab to score with: model and task are the run's own, whatever the data."""
    build = parts.make_model(parts.bare(stored["model"]), facts, home=run)
    task, settings = parts.task(stored, facts), parts.settings(stored)
    open = Bench(device).open  # members of a fused run
    return Lab(run=run, data=data, facts=facts, task=task, device=device, build=build, settings=settings, open=open)


def _stored_metrics(run: Run, data: Data, split: str) -> tuple[Metrics | None, str]:
    """What the run stored about these very rows, and a remark if they are no longer the same."""
    if not run.finished or split not in run.result:
        return None, ""
    if run.predictions(split)[1].get("split") != data.splits[split].fingerprint():
        return None, f"the rows of {split} are not those the run was scored on: nothing stored to compare with"
    return run.result[split], ""


def export(cfg: Config) -> None:
    """`sftc export run=RUN [out=FOLDER]`: model.safetensors and config.json that need nothing else of the run; with
    format=hf a folder that transformers opens.

    The safetensors file alone is enough: its metadata holds the same config, classes, scaling and numbers.
    """
    run = Run.open(cfg["run"])
    with blaming(run):
        stored, result, facts = stored_config(run), run.result, Facts.read(run)
        trust.check_model(run, stored, facts, cfg["weights"])
        model = _opened(run, stored, Device("cpu"), facts, None).restore(cfg["weights"])
        state = model.whole() if isinstance(model, models.Follower) else model.state_dict()
        folder = Path(cfg["out"]) if cfg["out"] else run.inside("export")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"out={folder} is there already and is never overwritten; choose another folder")
    if cfg.get("format") == "hf":
        with blaming(run):
            folder.mkdir(parents=True, exist_ok=True)
            said = models.text.write_plain(model, folder, facts.class_names)
        report.show(folder if cfg.get("quiet") else f"wrote {folder}: {said}")
        return
    which = result if cfg["weights"] == "model" else result["last"]
    about = {
        "model": parts.bare(stored["model"]),
        **facts.plain(),
        "result": {k: which[k] for k in ("val", "test") if k in which},
        "fingerprints": result["fingerprints"],
    }
    if run.fused:
        about["fusion"], _ = run.fusion()
        about["members"] = {p.name: parts.bare(stored_config(Run(p))["model"]) for p in _members(run)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", state, {"sftc": json.dumps(about)})
    Run(folder).write_json("config.json", about)
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    report.show(folder if cfg.get("quiet") else f"wrote {folder}: model.safetensors ({size}) and config.json")


def _members(run: Run) -> list[Path]:
    """The folders of a run's members, wherever they live."""
    names = sorted(p.name for p in (run.path / "members").iterdir())
    return [run.reference(name) or run.member(name) for name in names]
