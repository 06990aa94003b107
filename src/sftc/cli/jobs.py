"""The task functions Hydra runs: at module level, so that any launcher can send them; heavy imports inside.

Nothing is raised into Hydra: it would hide the jobs after a failed one. A single run ends by SystemExit with
its code; a job of a sweep leaves its end in `status.json` and lets the next one start.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sftc import early
from sftc.cli import compose, explain, folder
from sftc.errors import Refused, Stopped, printable

SIGNALLED = (130, 143)  # SIGINT, SIGTERM: they mean the sweep, not one job


def train(cfg: DictConfig) -> float | None:
    return _run("train", cfg)


def fuse(cfg: DictConfig) -> float | None:
    return _run("fuse", cfg)


def eval(cfg: DictConfig) -> float | None:
    return _run("eval", cfg)


def export(cfg: DictConfig) -> float | None:
    return _run("export", cfg)


def _run(command: str, cfg: DictConfig) -> float | None:
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        return _job(command, cfg, hydra)
    with ExitStack() as stack:
        out: Path | None = None
        try:
            config = compose.checked(command, cfg, hydra.runtime.choices, compose.source_dirs(hydra))
            out = _out(config, stack) if command in ("train", "fuse") else None
            value = _work(command, config.values, out, list(hydra.overrides.task))
        except BaseException as error:  # however a run ends, it is told here
            raise SystemExit(_tell(command, error, out)) from None
    return value


def _job(command: str, cfg: DictConfig, hydra: Any) -> float | None:
    """One job of a sweep, in the folder Hydra made for it."""
    out, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    out = Path(os.path.relpath(out)) if out.is_relative_to(Path.cwd()) else out
    print(f"\njob {hydra.job.num}: {' '.join(overrides)}", flush=True)
    value, failed = None, None
    try:
        config = compose.checked(command, cfg, hydra.runtime.choices, compose.source_dirs(hydra))
        value = _work(command, config.values, out, overrides)
    except BaseException as error:  # one failing job neither stops nor hides the others
        failed = error
        out.mkdir(parents=True, exist_ok=True)  # one that was refused took its folder away
        if not isinstance(error, Stopped | SystemExit):
            (out / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        print(f"sftc {command}: {explain.line(error)}", file=sys.stderr, flush=True)
        _trace(error)
    code = 0 if failed is None else explain.code(failed)
    _record(out, overrides, value, failed, code)
    if code in SIGNALLED:
        raise SystemExit(code)
    return value if failed is None else float("nan")


def _work(command: str, values: dict[str, Any], out: Path | None, overrides: list[str]) -> float | None:
    with _uncollected():
        build = importlib.import_module("sftc.build")  # the first import of torch
        early.check()
        if command == "train":
            build.check(values)  # makes the first optimizer, for which torch imports as much again
    if command == "train":
        return build.train(values, out, overrides, _command(command, overrides))
    if command == "fuse":
        return build.fuse(values, out, overrides, _command(command, overrides))
    {"eval": build.evaluate, "export": build.export}[command](values)
    return None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, now and later: it would look for garbage among a million new objects that stay."""
    on, first = gc.isenabled(), "sftc.build" not in sys.modules
    gc.disable()
    try:
        yield
        if first:  # of a sweep: what later jobs leave behind is garbage indeed
            gc.freeze()
            atexit.register(gc.unfreeze)  # or triton complains of what nobody has taken away
    finally:
        if on:
            gc.enable()


def _command(command: str, overrides: list[str]) -> str:
    """What to type for this job alone."""
    sources = HydraConfig.get().runtime.config_sources
    own = [part for s in sources if s.provider == "command-line" for part in ("--config-dir", s.path)]
    return shlex.join(["sftc", command, *overrides, *own])


def _out(config: compose.Config, stack: ExitStack) -> Path:
    """The run's folder: the resumed one, the one asked for, or a new one under outputs/."""
    resume, out = config.values.get("resume"), config.values["out"]
    if resume == "auto" and (Path(out) / "config.yaml").is_file():
        return Path(out)
    if resume not in (None, "auto"):
        return Path(resume)
    if config.values["out"] is not None:
        return folder.free(Path(config.values["out"]).expanduser())
    name = "-".join(config.choices.get(group, "none") for group in ("strategy", "data", "model"))
    return stack.enter_context(folder.reserved(name))


def _tell(command: str, error: BaseException, out: Path | None) -> int:
    """Print how a single run ended, keep its traceback, and return the exit code."""
    if isinstance(error, SystemExit):
        return explain.code(error)
    line = f"sftc {command}: {explain.line(error)}"
    if not isinstance(error, Refused | Stopped | KeyboardInterrupt):
        if out is not None and out.is_dir() and any(out.iterdir()):
            (out / "error.txt").unlink(missing_ok=True)  # of an earlier try, or a link that leads elsewhere
            (out / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            line += f" (traceback in {printable(out / 'error.txt')})"
        else:
            line += " (SFTC_TRACEBACK=1 shows where)"
    print(line, file=sys.stderr, flush=True)
    _trace(error)
    return explain.code(error)


def _trace(error: BaseException) -> None:
    if os.environ.get("SFTC_TRACEBACK") == "1":
        traceback.print_exception(error)


def _record(out: Path, overrides: list[str], value: float | None, error: BaseException | None, code: int) -> None:
    """Add what the sweep's table needs to the job's status.json; what the run itself wrote there stays."""
    path = out / "status.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    status = {
        "state": "finished",
        "value": value,
        "error": None,
        **written,
        "overrides": overrides,
        "code": code,
    }
    if error is not None:
        status["error"] = status["error"] or explain.line(error)
        if isinstance(error, Stopped | SystemExit):
            status["state"] = getattr(error, "state", "stopped")
        elif not written or written.get("state") == "running":
            status["state"] = "refused" if isinstance(error, Refused) else "failed"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(status, indent=1), encoding="utf-8")
    temporary.replace(path)
