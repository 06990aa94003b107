"""What `sftc --help`, `sftc COMMAND --help` and `sftc ls` print: read straight from the YAML and its comments."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftc import schema
from sftc.cli import conf
from sftc.cli.line import Line
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
  sftc train -m model=mlp,simple_cnn seed=0,1     sweep
  sftc eval run=outputs/...                   read a run again
  eval "$(sftc -sc install=bash)"             tab completion (bash, zsh or fish)
"""


def usage(commands: Mapping[str, str]) -> str:
    return USAGE.format(commands="\n".join(f"  {name:<7} {about}" for name, about in commands.items()))


def command(name: str, about: str, line: Line, dirs: list[Path]) -> str:
    """Groups with their options, then every key of the chosen options. Overrides on the line are shown applied."""
    values: Mapping[str, Any] | None = None
    if line.overrides:  # only then Hydra is needed; without it help is twice as fast
        from sftc.cli import compose

        values, choices = compose.shown(name, line.overrides, dirs)
    else:
        choices = conf.default_choices(dirs, name)
    keys = conf.declared(dirs, name, choices)
    parts = [
        f"usage: sftc {name} [key=value ...] [group=option ...] [-m] [--cfg job] [--config-dir DIR]\n{about}",
        _groups(choices, conf.groups(dirs)),
        *_keys(keys, choices, values),
        f"sftc {name} GROUP=OPTION --help shows the keys of another choice; sftc ls GROUP what the options are.",
    ]
    return "\n\n".join(part for part in parts if part)


def listing(args: list[str], dirs: list[Path]) -> str:
    """`sftc ls [group ...]`: options with the first line of their YAML.

    Raises:
        Refused: no such group.
    """
    found = conf.groups(dirs)
    for group in args:
        if group not in found:
            raise Refused(f"there is no group '{group}'{nearest(group, found)} (one of: {', '.join(found)})")
    parts = []
    for group in args or found:
        width = max(map(len, found[group]))
        options = [
            f"  {option:<{width}}  {schema.first_comment(file)}" for option, file in found[group].items()
        ]
        parts.append("\n".join([_bold(group), *(text.rstrip() for text in options)]))
    return "\n\n".join(parts)


def _groups(choices: Mapping[str, str], groups: Mapping[str, Iterable[str]]) -> str:
    shown = {place: option for place, option in choices.items() if place.partition("@")[0] in groups}
    if not shown:
        return ""
    rows = [_bold("groups") + " (group=option; * is chosen)"]
    width = max(map(len, shown))
    for place, chosen in shown.items():
        options = [f"*{o}" if o == chosen else o for o in groups[place.partition("@")[0]]]
        rows.append(_wrap(f"  {place:<{width}}  ", ", ".join(options)))
    return "\n".join(rows)


def _keys(keys: Keys, choices: Mapping[str, str], values: Mapping[str, Any] | None) -> list[str]:
    """One block for the top-level keys, one for each chosen group."""
    blocks: dict[str, list[Spec]] = {}
    for path, spec in keys.specs.items():
        group = next(
            (g for g in choices if path.startswith(g.partition("@")[2] or g.split("@")[0] + ".")), ""
        )
        blocks.setdefault(group, []).append(spec)
    width = min(34, max((len(_given(s, values)) for b in blocks.values() for s in b), default=0))
    return [
        "\n".join(
            [
                _bold(f"{group}={choices[group]}" if group else "keys"),
                *(_wrap(f"  {_given(spec, values):<{width}}  ", _meaning(spec)) for spec in specs),
            ]
        )
        for group, specs in blocks.items()
    ]


def _given(spec: Spec, values: Mapping[str, Any] | None) -> str:
    if values is None:
        return f"{spec.path}={spec.default}"
    node: Any = values
    for part in spec.path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return f"{spec.path}={schema.shown(node)}"


def _meaning(spec: Spec) -> str:
    rule = "" if spec.rule == "any" else f" [{spec.rule}]"
    return f"{spec.about}{rule}".strip()


def _wrap(head: str, text: str) -> str:
    columns = max(60, shutil.get_terminal_size((110, 24)).columns)
    indent = " " * min(len(head), 38)
    lines = textwrap.wrap(text, columns - len(indent), break_on_hyphens=False) or [""]
    if len(head) > len(indent):
        return "\n".join([head.rstrip(), *(indent + each for each in lines)])
    return "\n".join([(head + lines[0]).rstrip(), *(indent + each for each in lines[1:])])


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
