"""What `sftc --help`, `sftc COMMAND --help` and `sftc ls` print, read from the YAML and its comments."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftc import schema
from sftc.cli import conf, options
from sftc.cli.line import Line
from sftc.cli.teachers import NONE
from sftc.errors import Refused, nearest
from sftc.schema import Keys, Spec

USAGE = """\
usage: sftc COMMAND [key=value ...] [-m] [--help] [--cfg job] [--config-dir DIR]

commands
{commands}
  ls      list the groups and their options

examples
  sftc train                                  digits, a small network, a few seconds
  sftc train --help                           every group and key with its default
  sftc ls model                               the options of a group
  sftc train model=mlp optim.lr=0.1           override
  sftc train -m model=mlp,linear seed=0,1     sweep
  sftc train out=mine                         choose the run folder
  sftc train resume=mine                      go on with it
  sftc eval run=mine                          score it again
  eval "$(sftc -sc install=bash)"             tab completion (bash, zsh or fish)
"""


USAGE_LS = """\
usage: sftc ls [GROUP ...] [--config-dir DIR]
list the groups, or the options of some: what each is, and a command that uses it"""


def usage(commands: Mapping[str, str]) -> str:
    return USAGE.format(commands="\n".join(f"  {name:<7} {about}" for name, about in commands.items()))


def command(name: str, about: str, line: Line, dirs: list[Path]) -> str:
    """Groups with their options, then every key of the chosen options, with the line's overrides applied."""
    values: Mapping[str, Any] | None = None
    if line.overrides:  # only then Hydra is needed; without it help is twice as fast
        from sftc.cli import compose

        values, choices = compose.shown(name, line.overrides, dirs)
    else:
        choices = options.default(dirs, name)
    keys = options.declared(dirs, name, choices)
    parts = [
        f"usage: sftc {name} [key=value ...] [group=option ...] [-m] [--cfg job] [--config-dir DIR]\n{about}",
        _groups(choices, conf.groups(dirs), keys),
        *_keys(keys, choices, values, _untold(choices, line.overrides)),
        f"sftc {name} GROUP=OPTION --help: the keys of another choice; sftc ls GROUP: what its options are",
    ]
    return "\n\n".join(part for part in parts if part)


def listing(args: list[str], dirs: list[Path]) -> str:
    """`sftc ls [group ...]`: options with the first line of their YAML, and the slots they fit.

    Raises:
        Refused: no such group.
    """
    found = conf.groups(dirs)
    asked = [arg.partition("@")[0] for arg in args]  # model@strategy.teacher has the options of model
    for group in asked:
        if group not in found:
            raise Refused(f"there is no group '{group}'{nearest(group, found)} (one of: {', '.join(found)})")
    return "\n\n".join(_options(group, found[group]) + _slots(group, dirs) for group in asked or found)


def _options(group: str, files: Mapping[str, Path]) -> str:
    width = max(map(len, files))
    rows = [_bold(group)]
    for option, file in files.items():
        said, about = conf.about(file, group)
        rows.append(f"  {option:<{width}}  {about + '  ' if about else ''}[{said}]")
    return "\n".join(rows)


def _slots(group: str, dirs: list[Path]) -> str:
    """A line for each slot that takes options of `group`, and who has it."""
    rows = []
    for place in options.slots(dirs, "train"):
        path = options.package(place)
        outer = path.partition(".")[0]
        takers = [
            o for o in conf.groups(dirs).get(outer, ()) if options.declared(dirs, "train", {outer: o}).holds(path)
        ]
        if place.startswith(f"{group}@") and takers:
            rows.append(f"\n  {place}=OPTION takes one too, with {outer}={', '.join(takers)}")
    return "".join(rows)


def _groups(choices: Mapping[str, str], groups: Mapping[str, Iterable[str]], keys: Keys) -> str:
    shown = [p for p in choices if p in groups or ("@" in p and options.package(p) in keys.specs)]
    if not shown:
        return ""
    rows = [_bold("groups") + " (group=option; * is chosen)"]
    width = max(map(len, shown))
    for place in shown:
        group, chosen = place.partition("@")[0], choices[place]
        offered = ", ".join(f"*{o}" if o == chosen else o for o in groups[group])
        if group != place:  # a slot: no need to say the same again
            offered = f"*{chosen}, or any of {group}" + (", or none" if chosen != NONE else "")
        rows.append(_wrap(f"  {place:<{width}}  ", offered))
    return "\n".join(rows)


def _untold(choices: Mapping[str, str], overrides: Iterable[str]) -> set[str]:
    """The slots that the line does not touch: what they hold is said in one line, not key by key."""
    typed = tuple(override.lstrip("+~") for override in overrides)
    slots = {place for place in choices if "@" in place}
    return {s for s in slots if not any(o.startswith((f"{s}=", f"{options.package(s)}.")) for o in typed)}


def _keys(keys: Keys, choices: Mapping[str, str], values: Mapping[str, Any] | None, untold: set[str]) -> list[str]:
    """One block for the top-level keys, one for each chosen group; what nobody may set is left out."""
    packages = {options.package(place): place for place in choices}
    blocks: dict[str, list[Spec]] = {"": []}
    for path, spec in keys.specs.items():
        package = max((p for p in packages if path.startswith(p + ".")), key=len, default="")
        if not spec.fixed and packages.get(package) not in untold:
            blocks.setdefault(package, []).append(spec)
    width = min(34, max(len(_given(spec, values)) for specs in blocks.values() for spec in specs))
    heads = {p: f"{place}={choices[place]}" for p, place in packages.items()}
    return [
        "\n".join([_bold(heads.get(package, "keys")), *(_row(spec, values, width) for spec in specs)])
        for package, specs in blocks.items()
        if specs
    ]


def _row(spec: Spec, values: Mapping[str, Any] | None, width: int) -> str:
    rule = "" if spec.rule == "any" else f" [{spec.rule}]"
    return _wrap(f"  {_given(spec, values):<{width}}  ", f"{spec.about}{rule}".strip())


def _given(spec: Spec, values: Mapping[str, Any] | None) -> str:
    if spec.slot:
        return f"{spec.place}={spec.default}"
    if values is None:
        return f"{spec.path}={spec.default}"
    node: Any = values
    for part in spec.path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return f"{spec.path}={schema.shown(node)}"


def _wrap(head: str, text: str) -> str:
    columns = max(60, shutil.get_terminal_size((110, 24)).columns)
    indent = " " * min(len(head), 38)
    lines = textwrap.wrap(text, columns - len(indent), break_on_hyphens=False) or [""]
    if len(head) > len(indent):
        return "\n".join([head.rstrip(), *(indent + each for each in lines)])
    return "\n".join([(head + lines[0]).rstrip(), *(indent + each for each in lines[1:])])


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
