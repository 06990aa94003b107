"""Tab completion: the command is completed here, everything after it by Hydra."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable

from sftc.cli import conf, options
from sftc.cli.line import parse
from sftc.cli.teachers import NONE
from sftc.errors import Refused

_AT = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@}"  # bash splits words at it: model@strategy.teacher is one


def complete(args: list[str], commands: Iterable[str], run_hydra: Callable[[str, list[str]], int]) -> int:
    """Answer `sftc -sc query=SHELL` (the shell's line is in COMP_LINE), or `-sc install=SHELL`."""
    if not any(arg.startswith("query=") for arg in args):
        code = run_hydra("train", args)  # installing is the same for every command
        if "install=bash" in args:
            print(_AT)
        return code
    commands = [*commands, "ls"]
    words = os.environ.get("COMP_LINE", "").split()
    if os.environ.get("COMP_LINE", "").endswith(" "):
        words.append("")
    if len(words) <= 2:
        print(" ".join(c for c in commands if c.startswith(words[1] if len(words) > 1 else "")))
        return 0
    program, command, *rest = words
    if command == "ls":
        print(" ".join(g for g in conf.groups([conf.conf_dir()]) if g.startswith(rest[-1])))
        return 0
    if command not in commands:
        return 0
    slots = _slots(command, rest[:-1], rest[-1])
    if "@" in rest[-1]:
        print(" ".join(slots))
        return 0
    os.environ["COMP_LINE"] = " ".join([program, *rest])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = run_hydra(command, args)
    print(" ".join([*(word for word in said.getvalue().split() if "=_" not in word), *slots]))
    return code


def _slots(command: str, before: list[str], word: str) -> list[str]:
    """The slots that the strategy chosen so far has, or the options for one: Hydra's completion knows neither."""
    try:
        line = parse(before)
        dirs = conf.conf_dirs(line.config_dir)
    except Refused:
        return []
    place, equals, _ = word.partition("=")
    if "@" in place and equals:
        names = [*conf.groups(dirs).get(place.partition("@")[0], ()), NONE]
        return [f"{place}={name}" for name in names if f"{place}={name}".startswith(word)]
    keys = options.declared(dirs, command, options.chosen(dirs, command, line.overrides))
    known = [place for place in options.slots(dirs, command) if place.startswith(word)]
    return [f"{place}=" for place in known if keys.holds(options.package(place))]
