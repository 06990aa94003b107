"""Several models in one config: what may fill a slot, and names of models that become their nodes.

`model@strategy.teacher=resnet50` is merged by Hydra; all that is left to do here is to refuse what it lets pass. A list
of names, `strategy.models=[resnet18, vgg16]` (rule `models`), is filled here, after composing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sftc.cli import conf, options
from sftc.cli.teachers import NONE
from sftc.errors import Refused, nearest
from sftc.schema import Keys

GROUP = "model"


def check(dirs: list[Path], command: str, choices: Mapping[str, str | None], keys: Keys) -> None:
    """Refuse what Hydra merges without a word.

    Raises:
        Refused: a place that nothing reads, an option that is none, or a slot that the strategy does not have.
    """
    places = options.slots(dirs, command)
    for place, option in choices.items():
        if "@" not in place:
            continue
        if place not in places:
            raise Refused(no_place(dirs, command, place))
        if option != NONE and conf.find(dirs, f"{place.partition('@')[0]}/{option}") is None:
            raise Refused(no_option(dirs, place, str(option)))
        if option != NONE and options.package(place) not in keys.specs:
            outer, _, key = options.package(place).rpartition(".")
            near = options.elsewhere(dirs, command, options.package(place), choices)
            raise Refused(f"{place}={option}: {outer}={choices.get(outer)} has no {key}{near}")


def no_place(dirs: list[Path], command: str, place: str) -> str:
    """What to say of `model@strategy.techer=...`, or of `model@teacher=...`."""
    return f"nothing reads '{place}'{nearest(place, options.slots(dirs, command))}"


def no_option(dirs: list[Path], place: str, option: str) -> str:
    """What to say of `model@strategy.teacher=resnte50`."""
    group = place.partition("@")[0]
    names = [*conf.groups(dirs).get(group, ()), NONE]
    return f"there is no {place}={option}{nearest(option, names)} (one of: {', '.join(names)}; sftc ls {group})"


def filled(dirs: list[Path], values: dict[str, Any], keys: Keys) -> dict[str, Any]:
    """`values` with every name in a key of rule `models` replaced by the node of that option.

    Raises:
        Refused: a name that is no option of `model`, or an option with a key that still needs a value.
    """
    paths = {path for path, spec in keys.specs.items() if any(form.kind == "models" for form in spec.forms)}

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out = dict(node)
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path in paths:
                out[key] = value and [_node(dirs, path, name, values) for name in value]
            elif isinstance(value, Mapping):
                out[key] = walk(value, f"{path}.")
        return out

    return walk(values, "") if paths else values


def _node(dirs: list[Path], path: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The node that `model=NAME` would give, checked; `values` is the whole config, for interpolations."""
    names = conf.groups(dirs).get(GROUP, {})
    if name not in names:
        known = f"(one of: {', '.join(names)}; sftc ls {GROUP})"
        raise Refused(f"{path}: there is no {GROUP}={name}{nearest(name, names)} {known}")
    merged = OmegaConf.create()
    for _, file in conf.lineage(dirs, GROUP, name):
        merged = OmegaConf.merge(merged, OmegaConf.load(file))
    whole: Any = OmegaConf.to_container(OmegaConf.create({**values, GROUP: merged}), resolve=True)
    whole[GROUP].pop("defaults", None)
    return options.option_keys(dirs, GROUP, name, f"{path}.{name}").check(whole[GROUP], f"{path}.{name}.")
