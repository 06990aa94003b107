"""What the YAML files offer a command line. Knows no Hydra."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sftc import schema
from sftc.errors import Refused
from sftc.schema.places import GLOBAL, conf_dir, defaults, find, lineage, top

__all__ = ["GLOBAL", "Choices", "about", "conf_dir", "conf_dirs", "defaults", "find", "groups", "lineage", "top"]

Choices = dict[str, str]  # group, or group@package -> option


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


def about(file: Path, group: str) -> tuple[str, str]:
    """The command that uses an option, and what it is: `(...)` after that, or what its fixed name says."""
    said, _, more = schema.first_comment(file).partition("  (")
    name = schema.read(file, group).specs.get(f"{group}.name")
    return said.strip(), more.removesuffix(")") or (name.about if name and name.fixed else "")
