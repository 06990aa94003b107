"""Which options a command line chooses, and which keys they declare. Knows no Hydra.

A *slot* is a key that holds an option of another group: `model@strategy.teacher=resnet50` fills the key `teacher` of
the strategy. The defaults list of the command names all slots; a strategy has those whose key its YAML declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

from sftc import schema
from sftc.cli import conf
from sftc.cli.conf import Choices
from sftc.cli.teachers import NONE, RESOLVERS
from sftc.errors import Refused
from sftc.schema import Keys


def package(place: str) -> str:
    """The key that a group's option stands in: `strategy.teacher` of `model@strategy.teacher`."""
    group, _, inner = place.partition("@")
    return inner or group.replace("/", ".")


def slots(dirs: list[Path], command: str) -> list[str]:
    """The places of slots: `model@strategy.teacher`, ..."""
    return [place for place, _ in conf.defaults(conf.top(dirs, command)) if "@" in place]


def default(dirs: list[Path], command: str) -> Choices:
    """The options a command starts from: its defaults list. A group without a default maps to "null"."""
    return _resolved(dirs, _written(dirs, command))


def chosen(dirs: list[Path], command: str, overrides: Iterable[str]) -> Choices:
    """The options a command line asks for, read off without composing: defaults, experiments, then what was typed."""
    options, known = _written(dirs, command), conf.groups(dirs)
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    typed = {key: option for key, option in pairs if key.partition("@")[0] in known}
    for group in conf.GLOBAL:
        if file := conf.find(dirs, f"{group}/{typed.get(group, options.get(group))}"):
            options |= {place: option for place, option in _overriding(dirs, group, file) if place in options}
    return _resolved(dirs, options | typed)


def _overriding(dirs: list[Path], group: str, file: Path) -> list[tuple[str, str]]:
    """The choices that an experiment changes, after those of the experiments that it builds on."""
    parts = [option for place, option in conf.defaults(file) if not place and option != "_self_"]
    inner = [part for option in parts if (part := conf.find(dirs, f"{group}/{option}"))]
    below = [pair for part in inner for pair in _overriding(dirs, group, part)]
    return [*below, *conf.defaults(file, override=True)]


def declared(dirs: list[Path], command: str, choices: Mapping[str, str | None]) -> Keys:
    """Every key that `command` with these options knows.

    Files with `@package _global_` (experiment, debug) set keys and declare none: a mistyped one is found.
    """
    known = Keys()
    known.update(schema.read(conf.top(dirs, command)))
    for place, option in choices.items():
        group = place.partition("@")[0]
        if group.startswith("hydra") or option in (None, "null") or conf.find(dirs, f"{group}/{option}") is None:
            continue
        known.nodes.add(package(place))
        known.update(option_keys(dirs, place, str(option), package(place)))
    for place in slots(dirs, command):
        if spec := known.specs.get(package(place)):
            option = choices.get(place) if package(place) in known.nodes else None
            known.specs[spec.path] = spec.as_slot(place, option or NONE)
    return known


def option_keys(dirs: list[Path], place: str, option: str, path: str) -> Keys:
    """The keys of one option, below `path`; `place` is what is typed to choose another one."""
    keys, group = Keys(), place.partition("@")[0]
    for _, file in conf.lineage(dirs, group, option):
        if schema.is_global(file):
            continue
        if group in conf.GLOBAL and schema.read(file).specs:
            raise Refused(f"{file}: line 1 must be '# @package _global_', or its keys are read by nothing")
        keys.update(schema.read(file, path))
    return keys.chosen_by(place)


def grown(dirs: list[Path], command: str, overrides: list[str]) -> list[str]:
    """The overrides with `++` before keys that a free `dict` takes (`optim.kwargs.amsgrad=true`): Hydra wants it."""
    keys = Keys()
    for place, options in chosen(dirs, command, overrides).items():
        for option in options.split(","):  # a sweep over options
            keys.update(declared(dirs, command, {place: option}))
    return [f"++{o}" if "=" in o and keys.grows(o.partition("=")[0]) else o for o in overrides]


def home(path: str, places: Iterable[str], keys: Keys) -> str:
    """The place whose option `path` is a key of: `model@strategy.teacher` of `strategy.teacher.hidden`, or ""."""
    around = [
        place
        for place in places
        if path.startswith(f"{package(place)}.") and ("@" not in place or package(place) in keys.specs)
    ]
    return max(around, key=lambda place: len(package(place)), default="")


def elsewhere(dirs: list[Path], command: str, path: str, choices: Mapping[str, str | None]) -> str:
    """`"; finetune=first_n has it"` for a key that other options of its group declare, or ""."""
    place = home(path, choices, declared(dirs, command, choices))
    options = [
        option
        for option in conf.groups(dirs).get(place.partition("@")[0], ())
        if option != choices.get(place) and declared(dirs, command, {place: option}).holds(path)
    ]
    few = [*options[:4], *(["..."] if len(options) > 4 else [])]
    return f"; {place}={', '.join(few)} {'has' if len(options) == 1 else 'have'} it" if options else ""


def _written(dirs: list[Path], command: str) -> Choices:
    return {place: option for place, option in conf.defaults(conf.top(dirs, command)) if place}


def _resolved(dirs: list[Path], options: Choices) -> Choices:
    """`options` with `${usual_teacher:${strategy},${model}}` replaced by what Hydra will find; a sweep, by several."""
    found = dict(options)
    for place, option in options.items():
        if asked := re.fullmatch(r"\$\{(\w+):(.*)\}", option):
            args = [options[name].split(",") for name in re.findall(r"\$\{(\w+)\}", asked[2])]
            found[place] = ",".join(dict.fromkeys(RESOLVERS[asked[1]](dirs, *each) for each in product(*args)))
    return found
