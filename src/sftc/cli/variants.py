"""What the arguments of a sweep stand for, so that all its jobs can be checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep

from sftc.errors import Refused
from sftc.schema import shown

Groups = Mapping[str, Iterable[str]]


def jobs(overrides: list[str], groups: Groups) -> Iterator[list[str]]:
    """Every combination of group options, each with every value of the other keys at least once."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    options = [_values(override) for override in parsed if override.key_or_group in groups]
    others = [_values(override) for override in parsed if override.key_or_group not in groups]
    rounds = max((len(values) for values in others), default=1)
    for choice in product(*options):
        for i in range(rounds):
            yield [*choice, *(values[i % len(values)] for values in others)]


def count(overrides: list[str]) -> int:
    """How many jobs Hydra's own sweeper makes of a command line."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return prod(
        sum(1 for _ in o.sweep_string_iterator()) for o in parsed if o.is_sweep_override() and o.is_discrete_sweep()
    )


def spelled_out(overrides: list[str], groups: Groups) -> list[str]:
    """`model=glob(res*)` as `model=resnet18,resnet50`: Hydra's own glob would also find the shared parts.

    Raises:
        Refused: a pattern that fits no option.
    """
    return [_spelled(override, groups) for override in OverridesParser.create().parse_overrides(overrides)]


def _spelled(override: Override, groups: Groups) -> str:
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return override.input_line or ""
    options = list(groups.get(override.key_or_group, ()))
    if fitting := pattern.filter(options):
        return f"{override.get_key_element()}={','.join(fitting)}"
    raise Refused(f"{override.input_line} fits no option (one of: {', '.join(options)})")


def _values(override: Override) -> list[str]:
    """The overrides one argument stands for. Of a range or an interval the two ends are enough."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if override.is_discrete_sweep():
        texts = list(override.sweep_string_iterator())
        ends_only = isinstance(override.value(), RangeSweep) and len(texts) > 1
        return [f"{key}={text}" for text in ([texts[0], texts[-1]] if ends_only else texts)]
    interval: Any = override.value()
    return [f"{key}={shown(end)}" for end in (interval.start, interval.end)]
