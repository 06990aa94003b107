"""Where the YAML files are, and which of them make up an option. Knows no Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from sftc.errors import Refused, nearest
from sftc.schema.files import parse

GLOBAL = ("experiment", "debug")  # groups whose files set keys of the others


def conf_dir() -> Path:
    """`sftc/conf` of an installed wheel, the repository's `conf/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


def find(dirs: Iterable[Path], name: str) -> Path | None:
    """The file of `group/option` or of a top-level name; earlier directories win, as in Hydra."""
    return next((file for d in dirs if (file := d / f"{name}.yaml").is_file()), None)


def top(dirs: list[Path], command: str) -> Path:
    """The file of a command."""
    file = find(dirs, command)
    if file is None:
        raise Refused(f"{dirs[0]} holds no {command}.yaml{nearest(command, (f.stem for f in dirs[0].glob('*.yaml')))}")
    return file


def lineage(dirs: list[Path], group: str, option: str) -> Iterator[tuple[str, Path]]:
    """An option and what its defaults list names, as (name, file), in the order in which Hydra merges them."""
    file = find(dirs, f"{group}/{option}")
    if file is None:
        return
    entries = [name for key, name in defaults(file) if not key]
    for name in entries if "_self_" in entries else [*entries, "_self_"]:
        if name == "_self_":
            yield option, file
        elif name.startswith("/"):
            inner, _, other = name.lstrip("/").rpartition("/")
            yield from lineage(dirs, inner, other)
        else:
            yield from lineage(dirs, group, name)


@cache
def defaults(file: Path, override: bool = False) -> tuple[tuple[str, str], ...]:
    """The entries of a defaults list: (group, option), or ("", name of a file to include).

    With `override` instead those that change the choice of another group.
    """
    root = parse(file.read_text(encoding="utf-8"), file)
    entries: list[tuple[str, str]] = []
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for item in value.value:
            pairs = [("", item)] if isinstance(item, yaml.ScalarNode) else [(k.value, v) for k, v in item.value]
            entries += [(_group(said), v.value) for said, v in pairs if said.startswith("override ") is override]
    return tuple(entries)


def _group(said: str) -> str:
    """`model@strategy.teacher` of `optional model@strategy.teacher`."""
    return said.split(" ")[-1].strip("/")
