"""Where the YAML files are, what they offer, and which keys a choice of options declares. Knows no Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from sftc import schema
from sftc.errors import Refused, nearest
from sftc.schema import Keys

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


def about(file: Path, group: str) -> tuple[str, str]:
    """The command that uses an option, and what it is: `(...)` after that, or what its fixed name says."""
    said, _, more = schema.first_comment(file).partition("  (")
    name = schema.read(file, group).specs.get(f"{group}.name")
    return said.strip(), more.removesuffix(")") or (name.about if name and name.fixed else "")


def default_choices(dirs: list[Path], command: str) -> Choices:
    """The options a command starts from: its defaults list. A group without a default maps to "null"."""
    return {group.split(" ")[-1].strip("/"): option for group, option in _defaults(_file(dirs, command)) if group}


def choices(dirs: list[Path], command: str, overrides: Iterable[str]) -> Choices:
    """The options a command line asks for, read off without composing: defaults, then what was typed."""
    chosen = default_choices(dirs, command)
    known = groups(dirs)
    for override in overrides:
        key, _, option = override.lstrip("+").partition("=")
        if key.partition("@")[0] in known:
            chosen[key] = option
    return chosen


def declared(dirs: list[Path], command: str, choices: Mapping[str, str | None]) -> Keys:
    """Every key that `command` with these options knows.

    Files with `@package _global_` (experiment, debug) set keys and declare none: a mistyped one is found.
    """
    keys = schema.read(_file(dirs, command))
    known = Keys(dict(keys.specs), set(keys.nodes))
    for place, option in choices.items():
        group, _, package = place.partition("@")
        if group.startswith("hydra") or option in (None, "null"):
            continue
        if file := find(dirs, f"{group}/{option}"):
            known.nodes.add(package or group.replace("/", "."))
            _declare(dirs, group, file, package or group.replace("/", "."), known)
    return known


def grown(dirs: list[Path], command: str, overrides: list[str]) -> list[str]:
    """The overrides with `++` before keys that a free `dict` takes (`optim.kwargs.amsgrad=true`): Hydra wants it."""
    keys = Keys()
    for place, options in choices(dirs, command, overrides).items():
        for option in options.split(","):  # a sweep over options
            keys.update(declared(dirs, command, {place: option}))
    return [f"++{o}" if "=" in o and keys.grows(o.partition("=")[0]) else o for o in overrides]


def elsewhere(dirs: list[Path], command: str, path: str, chosen: Mapping[str, str | None]) -> str:
    """`"; finetune=first_n has it"` for a key that other options of its group declare, or ""."""
    group = path.split(".")[0]
    options = [
        option
        for option in groups(dirs).get(group, ())
        if option != chosen.get(group) and path in declared(dirs, command, {group: option}).specs
    ]
    few = [*options[:4], *(["..."] if len(options) > 4 else [])]
    return f"; {group}={', '.join(few)} {'has' if len(options) == 1 else 'have'} it" if options else ""


def _declare(dirs: list[Path], group: str, file: Path, package: str, known: Keys) -> None:
    if schema.is_global(file):
        return
    if group in GLOBAL and schema.read(file).specs:
        raise Refused(f"{file}: line 1 must be '# @package _global_', or its keys are read by nothing")
    for inner, parent in _defaults(file):
        if not inner and parent != "_self_":
            name = parent.lstrip("/") if parent.startswith("/") else f"{group}/{parent}"
            if (other := find(dirs, name)) is not None:
                _declare(dirs, group, other, package, known)
    known.update(schema.read(file, package))


def _defaults(file: Path) -> list[tuple[str, str]]:
    """The entries of a defaults list: (group, option), or ("", name of a file to include)."""
    root = schema.parse(file.read_text(encoding="utf-8"), file)
    if not isinstance(root, yaml.MappingNode):
        return []
    entries: list[tuple[str, str]] = []
    for key, value in root.value:
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for item in value.value:
            if isinstance(item, yaml.ScalarNode):
                entries.append(("", item.value))
            elif not item.value[0][0].value.startswith("override "):
                entries += [(group.value, option.value) for group, option in item.value]
    return entries


def _file(dirs: list[Path], command: str) -> Path:
    file = find(dirs, command)
    if file is None:
        raise Refused(f"{dirs[0]} holds no {command}.yaml{nearest(command, (f.stem for f in dirs[0].glob('*.yaml')))}")
    return file
