"""Where the YAML files are and what they offer. Knows no Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from sftc import schema
from sftc.errors import Refused, nearest

GLOBAL = ("experiment", "debug")  # groups whose files set keys of the others
Choices = dict[str, str]  # group, or group@package -> option


def conf_dir() -> Path:
    """`sftc/conf` of an installed wheel, the repository's `conf/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


def conf_dirs(extra: str | None) -> list[Path]:
    """Our directory, and the user's `--config-dir` after it.

    Raises:
        Refused: the user's is not there.
    """
    if extra is not None and not Path(extra).is_dir():
        raise Refused(f"--config-dir {extra}: there is no such directory")
    return [conf_dir(), *([Path(extra).resolve()] if extra is not None else [])]


def groups(dirs: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Group -> option -> file. Names with a leading underscore are shared parts, not options."""
    found: dict[str, dict[str, Path]] = {}
    for directory in dirs:
        for file in sorted(directory.rglob("*.yaml")):
            group = file.parent.relative_to(directory).as_posix()
            if group != "." and not file.stem.startswith("_") and not group.startswith((".", "hydra/")):
                found.setdefault(group, {}).setdefault(file.stem, file)
    return dict(sorted(found.items()))


def find(dirs: Iterable[Path], name: str) -> Path | None:
    """The file of `group/option` or of a top-level name; earlier directories win, as in Hydra."""
    return next((file for d in dirs if (file := d / f"{name}.yaml").is_file()), None)


def top(dirs: list[Path], command: str) -> Path:
    """The file of a command."""
    file = find(dirs, command)
    if file is None:
        raise Refused(f"{dirs[0]} holds no {command}.yaml{nearest(command, (f.stem for f in dirs[0].glob('*.yaml')))}")
    return file


def about(file: Path, group: str) -> tuple[str, str]:
    """The command that uses an option, and what it is: `(...)` after that, or what its fixed name says."""
    said, _, more = schema.first_comment(file).partition("  (")
    name = schema.read(file, group).specs.get(f"{group}.name")
    return said.strip(), more.removesuffix(")") or (name.about if name and name.fixed else "")


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
    root = schema.parse(file.read_text(encoding="utf-8"), file)
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
