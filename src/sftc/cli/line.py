"""One command line, taken apart: `key=value` overrides, flags, and what the flags mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftc.errors import Refused, nearest

_SWITCHES = {
    "-m": "--multirun",
    "-r": "--run",
    "-h": "--help",
    "-sc": "--shell-completion",
    "--resolve": "--resolve",
}
_WITH_VALUE = {"-c": "--cfg", "-p": "--package", "-i": "--info", "-cd": "--config-dir"}
_FLAGS = {**_SWITCHES, **_WITH_VALUE}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass
class Line:
    """What a user typed after the command."""

    overrides: list[str] = field(default_factory=list)
    flags: dict[str, str | None] = field(default_factory=dict)  # long name -> value

    @property
    def sweep(self) -> bool:
        return "--multirun" in self.flags

    @property
    def help(self) -> bool:
        return "--help" in self.flags

    @property
    def shows(self) -> bool:
        """Whether Hydra is to print something instead of running a job."""
        return not {"--cfg", "--info", "--shell-completion"}.isdisjoint(self.flags)

    @property
    def config_dir(self) -> str | None:
        return self.flags.get("--config-dir")

    def value(self, key: str) -> str | None:
        """The last value given to `key`, as typed."""
        return next((o.partition("=")[2] for o in reversed(self.overrides) if o.partition("=")[0] == key), None)

    def argv(self) -> list[str]:
        """Overrides first, flags last: Hydra 1.3 refuses `k=v -m k=v`."""
        flags = [part for name, value in self.flags.items() for part in ([name] if value is None else [name, value])]
        return [*self.overrides, *flags]


def parse(args: list[str]) -> Line:
    """Take a command line apart.

    Raises:
        Refused: an unknown flag, or one without its value.
    """
    line = Line()
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or _is_number(word):
            line.overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = _FLAGS.get(flag, flag)
        if name not in _FLAGS.values():
            raise Refused(f"there is no flag {flag}{nearest(flag, [*_FLAGS, *_FLAGS.values()])}")
        if flag in _SWITCHES or name in _SWITCHES.values():
            line.flags[name] = None
        elif equals:
            line.flags[name] = value
        elif name == "--info" and (not rest or rest[0] not in _INFO):
            line.flags[name] = "all"
        elif rest:
            line.flags[name] = rest.pop(0)
        else:
            raise Refused(f"{flag} needs a value{' (job, hydra or all)' if name == '--cfg' else ''}")
    _consistent(line)
    return line


def _is_number(word: str) -> bool:
    return word[1:2].isdigit()


def _consistent(line: Line) -> None:
    if line.sweep and line.shows:
        raise Refused("-m runs jobs; leave it out to show a config")
    if line.flags.get("--cfg") not in (None, "job", "hydra", "all"):
        raise Refused(f"--cfg is one of job, hydra, all{nearest(str(line.flags['--cfg']), ['job', 'hydra', 'all'])}")
