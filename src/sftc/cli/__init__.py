"""`sftc train|eval|export|ls [key=value ...] [-m]`: one entry point over one Hydra app per command.

Overrides are composed and checked here before Hydra runs anything, so a mistake costs a fraction of a second,
prints one line and leaves no folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftc.cli import conf, elsewhere, options
from sftc.cli.line import Line, parse
from sftc.errors import Refused, nearest, printable

COMMANDS = {
    "train": "train a model and write a run folder",
    "fuse": "make one better prediction of finished runs",
    "eval": "rebuild a run's model from its folder and score it",
    "export": "write a run's model as one self-contained file",
}
_WITH_RESUME = ("resume=", "quiet=", "hydra.")  # all that may be said of a run that goes on


def main(argv: list[str] | None = None) -> int:
    """The `sftc` program; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        from sftc.cli import help

        print(help.usage(COMMANDS))
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from sftc import __version__

        print(f"sftc {__version__}")
        return 0
    command, rest = args[0], args[1:]
    name = f"sftc {command}" if command in (*COMMANDS, "ls") else "sftc"
    try:
        with _hydra_raises():
            return _dispatch(command, rest)
    except Refused as error:
        print(f"{name}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:  # `sftc ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SFTC_TRACEBACK") == "1":
            raise
        said = printable(" ".join(str(error).split()))
        print(f"{name}: {type(error).__name__}: {said} (SFTC_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1


def _dispatch(command: str, args: list[str]) -> int:
    if command in ("-sc", "--shell-completion"):
        from sftc.cli.complete import complete

        return complete([command, *args], COMMANDS, lambda name, rest: _hydra(name, parse(rest)))
    if command not in (*COMMANDS, "ls"):
        raise Refused(f"there is no command '{command}'{nearest(command, [*COMMANDS, 'ls'])} (sftc --help)")
    line = parse(args)
    dirs = conf.conf_dirs(line.config_dir)
    if command == "eval":
        line.overrides = elsewhere.named(dirs, line.overrides)
    if command in COMMANDS:
        line.overrides = options.grown(dirs, command, line.overrides)
    if line.help or command == "ls":
        from sftc.cli import help

        if command == "ls":
            print(help.USAGE_LS if line.help else help.listing(line.overrides, dirs))
        else:
            print(help.command(command, COMMANDS[command], line, dirs))
        return 0
    return _run(command, line, dirs)


def _run(command: str, line: Line, dirs: list[Path]) -> int:
    """Check every job of the line, then hand it to Hydra."""
    from sftc.cli import compose, explain, sweep, variants

    if line.sweep:
        with explain.refusing(command, line.overrides, dirs):
            line.overrides = variants.spelled_out(line.overrides, conf.groups(dirs))
    if "--info" not in line.flags:
        compose.check_all(command, line.overrides, dirs, line.sweep)
    if not line.sweep:
        _may_resume(line)
        return _hydra(command, line)
    with sweep.place(line) as folder:
        code, planned = 1, variants.count(line.overrides) if line.value("hydra/sweeper") is None else 0
        try:
            code = _hydra(command, line, [f"hydra.sweep.dir={compose.quoted(str(folder))}"])
        except SystemExit as end:  # a signal: the jobs so far are still told
            code = int(end.code or 0)
        finally:
            failed = sweep.report(folder, planned)
    return code or failed


def _hydra(command: str, line: Line, extra: list[str] | None = None) -> int:
    """Run `hydra.main` on the line with the command cut off."""
    import hydra

    from sftc.cli import compose, jobs, teachers

    teachers.register(conf.conf_dirs(line.config_dir))
    before = sys.argv
    sys.argv = [before[0], *(extra or []), *line.argv()]
    try:
        app = hydra.main(config_path=str(conf.conf_dir()), config_name=command, **compose.version_base())
        app(getattr(jobs, command))()
    finally:
        sys.argv = before
    return 0


def _may_resume(line: Line) -> None:
    run = line.value("resume")
    if run in (None, "null"):
        return
    if run == "auto":
        if line.value("out") in (None, "null"):
            raise Refused("resume=auto goes on with the run in out=, or starts it there; name one: out=PATH")
        return
    others = [o for o in line.overrides if not o.startswith(_WITH_RESUME)]
    if others:
        raise Refused(f"resume={run} goes on with the settings stored there; leave out {' '.join(others)}")
    if not (Path(run.strip("'\"")) / "config.yaml").is_file():
        raise Refused(f"resume={run}: there is no run (no config.yaml in it)")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra raises instead of printing and exiting. Who set HYDRA_FULL_ERROR wants our tracebacks too."""
    before = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", "SFTC_TRACEBACK")}
    if before["HYDRA_FULL_ERROR"] == "1":
        os.environ["SFTC_TRACEBACK"] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
