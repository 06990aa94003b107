"""Several models in one config: what may fill a slot, and names of models that become their nodes.

`model@strategy.teacher=resnet50` is merged by Hydra; all that is left to do here is to refuse what it lets pass. A list
of names, `strategy.models=[resnet18, vgg16]` (rule `models`), is filled here, after composing; so is what is set for
each member of a team (rule `changes`, see changes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sftc.cli import changes, conf, options
from sftc.cli.teachers import NONE
from sftc.errors import Refused, nearest
from sftc.schema import Keys

GROUP = "model"
KINDS = ("models", "changes")  # rules of keys that are filled here


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
    """`values` with every name in a key of rule `models` replaced by the node of that option, and changes by nodes.

    Raises:
        Refused: a name that is no option of its group, an option with a key that still needs a value, or a change
            that is none.
    """
    paths = {path: form.kind for path, spec in keys.specs.items() for form in spec.forms if form.kind in KINDS}

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out = dict(node)
        for key, value in node.items():
            path = f"{prefix}{key}"
            kind = paths.get(path)
            if kind == "models":
                out[key] = value and [_node(dirs, path, GROUP, name, values) for name in value]
            elif kind == "changes":
                out[key] = value and list(_changed(dirs, path, value, node.get("models") or [], values, keys))
            elif isinstance(value, Mapping):
                out[key] = walk(value, f"{path}.")
        return out

    return walk(values, "") if paths else values


def _changed(
    dirs: list[Path], path: str, listed: list[Any], models: list[str], values: Mapping[str, Any], keys: Keys
) -> Iterator[dict[str, Any]]:
    """What each member has of its own; a key of its model is one of the model that the team has in that place."""
    for i, change in enumerate(listed):
        own = bool(models) and i < len(models) and any(key.partition(".")[0] == GROUP for key in change)
        change = {GROUP: models[i], **change} if own and not isinstance(change.get(GROUP), Mapping) else change
        yield changes.applied(
            dirs, f"{path}[{i}]", change, values, keys, lambda at, group, name: _node(dirs, at, group, name, values)
        )


def _node(dirs: list[Path], path: str, group: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The node that `GROUP=NAME` would give, checked; `values` is the whole config, for interpolations."""
    names = conf.groups(dirs).get(group, {})
    if name not in names:
        known = f"(one of: {', '.join(names)}; sftc ls {group})"
        raise Refused(f"{path}: there is no {group}={name}{nearest(name, names)} {known}")
    merged = OmegaConf.create()
    for _, file in conf.lineage(dirs, group, name):
        merged = OmegaConf.merge(merged, OmegaConf.load(file))
    whole: Any = OmegaConf.to_container(OmegaConf.create({**values, group: merged}), resolve=True)
    whole[group].pop("defaults", None)
    return options.option_keys(dirs, group, name, f"{path}.{name}").check(whole[group], f"{path}.{name}.")
