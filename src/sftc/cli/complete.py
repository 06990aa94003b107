"""Tab completion: the command is completed here, everything after it by Hydra."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable

from sftc.cli import conf


def complete(args: list[str], commands: Iterable[str], run_hydra: Callable[[str, list[str]], int]) -> int:
    """Answer `sftc -sc query=SHELL` (the shell's line is in COMP_LINE), or `-sc install=SHELL`."""
    if not any(arg.startswith("query=") for arg in args):
        return run_hydra("train", args)  # installing is the same for every command
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
    os.environ["COMP_LINE"] = " ".join([program, *rest])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = run_hydra(command, args)
    print(" ".join(word for word in said.getvalue().split() if "=_" not in word))
    return code
