"""A command line's config, composed by Hydra and checked key by key before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from sftc import schema
from sftc.cli import conf, explain
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
            raise Refused(f"{group}={option} is a shared part, not an option (sftc ls {group})")
    for group in conf.default_choices(dirs, command):
        if group not in chosen and not group.startswith("hydra"):
            raise Refused(f"~{group}: a group cannot be taken away; choose an option (sftc ls {group})")
    values: Any = OmegaConf.to_container(_own(cfg), resolve=True)
    keys = conf.declared(dirs, command, chosen)
    if unknown := keys.unknown(values):
        raise Refused(f"{_unread(unknown[0], chosen, dirs, keys)} (sftc {command} --help lists every key)")
    values = keys.check(values)
    if removed := keys.removed(values):
        raise Refused(
            f"~{removed[0]}: a declared key cannot be taken away; give it a value (sftc {command} --help)"
        )
    absent = dict.fromkeys(group for group, option in chosen.items() if option is None)  # `- data: null`
    return Config({**absent, **values}, chosen, keys)


def check_all(command: str, overrides: list[str], dirs: list[Path], sweep: bool) -> Config:
    """Compose and check every job a command line asks for; the config of the first.

    In a sweep every combination of group options is composed, each with every value of the other keys at
    least once: which keys exist depends on the options alone, whether a value is allowed on the value alone.
    """
    first, job = None, overrides
    try:
        with composer(dirs, command) as compose:
            for job in _variants(overrides, conf.groups(dirs)) if sweep else [overrides]:
                cfg = compose(job)
                config = checked(command, cfg, cfg.hydra.runtime.choices, dirs)
                first = first or config
    except Exception as error:
        if (refused := explain.refusal(error, command, job, dirs)) is None or refused is error:
            raise
        raise refused from error
    assert first is not None
    return first


def shown(command: str, overrides: list[str], dirs: list[Path]) -> tuple[dict[str, Any], conf.Choices]:
    """Values and options as `--help` shows them: unchecked, since something may still be missing."""
    try:
        with composer(dirs, command) as compose:
            cfg = compose(overrides)
            values: Any = OmegaConf.to_container(_own(cfg))
            return values, {
                group: cfg.hydra.runtime.choices.get(group) for group in _places(dirs, command, cfg)
            }
    except Exception as error:
        if (refused := explain.refusal(error, command, overrides, dirs)) is None:
            raise
        raise refused from error


def _places(dirs: list[Path], command: str, cfg: DictConfig) -> list[str]:
    """The groups of a config in the order of the defaults list; Hydra has them from last to first."""
    first = list(conf.default_choices(dirs, command))
    return first + [g for g in cfg.hydra.runtime.choices if g not in first and not g.startswith("hydra")]


def _own(cfg: DictConfig) -> DictConfig:
    """The config without Hydra's node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def source_dirs(hydra: Any) -> list[Path]:
    """The directories a running job's YAML came from, as Hydra recorded them."""
    sources = [s for s in hydra.runtime.config_sources if s.schema == "file" and s.path]
    return [Path(urlparse(s.path).path if "://" in s.path else s.path) for s in sources]


def _variants(overrides: list[str], groups: Mapping[str, Mapping[str, Path]]) -> Iterator[list[str]]:
    parsed = OverridesParser.create().parse_overrides(overrides)
    options = [_values(o, groups) for o in parsed if o.key_or_group in groups]
    others = [_values(o, groups) for o in parsed if o.key_or_group not in groups]
    rounds = max((len(values) for values in others), default=1)
    for choice in product(*options):
        for i in range(rounds):
            yield [*choice, *(values[i % len(values)] for values in others)]


def _values(override: Override, groups: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """The overrides one argument of a sweep stands for. Of a range or an interval the two ends are enough."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        return [f"{key}={name}" for name in value.filter(list(groups.get(override.key_or_group, ())))]
    if not override.is_discrete_sweep():
        return [f"{key}={schema.shown(end)}" for end in (value.start, value.end)]  # type: ignore[union-attr]
    texts = list(override.sweep_string_iterator())
    return [
        f"{key}={text}"
        for text in (texts[:: max(1, len(texts) - 1)] if isinstance(value, RangeSweep) else texts)
    ]


def _unread(path: str, choices: Mapping[str, str], dirs: list[Path], keys: schema.Keys) -> str:
    near = schema.suggest(path, keys.names())
    for group, option in choices.items():
        file = conf.find(dirs, f"{group}/{option}")
        if file and schema.is_global(file) and path in schema.read(file).names():
            return f"{file} sets '{path}', which nothing reads{near}"
    return f"nothing reads '{path}'{near}"


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"
