"""A command line's config, composed by Hydra and checked key by key before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sftc import schema
from sftc.cli import conf, explain, options, slots, teachers, variants
from sftc.errors import Refused


def version_base() -> dict[str, str]:
    """`version_base` for Hydra 1.3; later versions deprecate the argument."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


@dataclass
class Config:
    """What one job runs with."""

    values: dict[str, Any]  # plain types, resolved, without Hydra's own node
    choices: conf.Choices
    keys: schema.Keys


@contextmanager
def composer(dirs: list[Path], command: str) -> Iterator[Any]:
    """A function from overrides to Hydra's composed config (its `hydra` node included)."""
    from hydra import compose, initialize_config_dir

    extra = [f"hydra.searchpath=[{', '.join(quoted(f'file://{d}') for d in dirs[1:])}]"] if dirs[1:] else []
    teachers.register(dirs)
    with initialize_config_dir(str(dirs[0]), **version_base()):
        yield lambda overrides: compose(command, overrides=[*extra, *overrides], return_hydra_config=True)


def checked(command: str, cfg: DictConfig, choices: Mapping[str, str], dirs: list[Path]) -> Config:
    """The plain config of one job.

    Raises:
        Refused: an option that is none, a key that nothing reads, one taken away, or a value not allowed.
    """
    chosen = {group: option for group, option in choices.items() if not group.startswith("hydra")}
    for group, option in chosen.items():
        if str(option).startswith("_"):
            raise Refused(f"{group}={option} is a shared part, not an option (sftc ls {group.partition('@')[0]})")
    for group in options.default(dirs, command):
        if group not in chosen and not group.startswith("hydra"):
            way_out = f"write {group}=none" if "@" in group else f"choose an option (sftc ls {group})"
            raise Refused(f"~{group}: a group cannot be taken away; {way_out}")
    values: Any = OmegaConf.to_container(_own(cfg), resolve=True)
    keys = options.declared(dirs, command, chosen)
    slots.check(dirs, command, chosen, keys)
    if unknown := keys.unknown(values):
        raise Refused(f"{_unread(command, unknown[0], chosen, dirs, keys)} (sftc {command} --help lists every key)")
    values = keys.check(values)
    if removed := keys.removed(values):
        raise Refused(f"~{removed[0]}: a declared key cannot be taken away; give it a value (sftc {command} --help)")
    absent = dict.fromkeys(group for group, option in chosen.items() if option is None)  # `- data: null`
    return Config({**absent, **slots.filled(dirs, values, keys)}, chosen, keys)


def check_all(command: str, overrides: list[str], dirs: list[Path], sweep: bool) -> Config:
    """Compose and check every job a command line asks for; the config of the first.

    In a sweep every combination of group options is composed, each with every value of the other keys at
    least once: which keys exist depends on the options alone, whether a value is allowed on the value alone.
    """
    jobs = variants.jobs(overrides, conf.groups(dirs)) if sweep else [overrides]
    first = None
    with composer(dirs, command) as compose:
        for job in jobs:
            with explain.refusing(command, job, dirs):
                cfg = compose(job)
                config = checked(command, cfg, cfg.hydra.runtime.choices, dirs)
                first = first or config
    assert first is not None
    return first


def shown(command: str, overrides: list[str], dirs: list[Path]) -> tuple[dict[str, Any], conf.Choices]:
    """Values and options as `--help` shows them: unchecked, since something may still be missing."""
    with explain.refusing(command, overrides, dirs), composer(dirs, command) as compose:
        cfg = compose(overrides)
        values: Any = OmegaConf.to_container(_own(cfg))
        places = _places(dirs, command, cfg)
    return values, {place: cfg.hydra.runtime.choices.get(place) for place in places}


def _places(dirs: list[Path], command: str, cfg: DictConfig) -> list[str]:
    """The groups of a config in the order of the defaults list; Hydra has them from last to first."""
    first = list(options.default(dirs, command))
    return first + [g for g in cfg.hydra.runtime.choices if g not in first and not g.startswith("hydra")]


def _own(cfg: DictConfig) -> DictConfig:
    """The config without Hydra's node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def source_dirs(hydra: Any) -> list[Path]:
    """The directories a running job's YAML came from, as Hydra recorded them."""
    return [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file" and s.path]


def _unread(command: str, path: str, choices: Mapping[str, str], dirs: list[Path], keys: schema.Keys) -> str:
    near = options.elsewhere(dirs, command, path, choices) or schema.suggest(path, keys.names())
    for group, option in choices.items():
        file = conf.find(dirs, f"{group}/{option}")
        if file and schema.is_global(file) and path in schema.read(file).names():
            return f"{file} sets '{path}', which nothing reads{near}"
    return f"nothing reads '{path}'{near}"


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"
