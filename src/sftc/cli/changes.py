"""What is set for one member alone: `strategy.each=[{optim.lr:0.1},{model:mlp,epochs:3}]`, rule `changes`.

Checked as if it were typed for the whole run, and handed on as the nodes and keys of the config that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from sftc.cli import conf, options
from sftc.errors import Refused, nearest
from sftc.schema import Keys, suggest
from sftc.schema.members import GROUPS, KEYS


def applied(
    dirs: list[Path], path: str, change: Mapping[str, Any], values: Mapping[str, Any], keys: Keys, node: Any
) -> dict[str, Any]:
    """One member's part of the config, whole: {"optim": {... lr: 0.1}, "epochs": 3}.

    Args:
        path: how the member is called where something is refused.
        values: the config of the run, and `keys` what it declares.
        node: (path, group, option) -> the node of an option, checked.

    Raises:
        Refused: a key that nothing reads or that belongs to the whole team, or a value that is not allowed.
    """
    out: dict[str, Any] = {}
    known = Keys({k: s for k, s in keys.specs.items() if k in KEYS or k.partition(".")[0] in GROUPS}, set(keys.nodes))
    for group in GROUPS:
        if isinstance(option := change.get(group), str):
            out[group] = node(f"{path}: {group}", group, option)
            known.specs = {k: s for k, s in known.specs.items() if not k.startswith(f"{group}.")}
            known.update(options.option_keys(dirs, group, option, group))
    for key, value in _flat({k: v for k, v in change.items() if k not in GROUPS or not isinstance(v, str)}, known):
        if key not in known.specs and not known.is_free(key):
            raise Refused(f"{path}: {_unread(dirs, key, out, keys, known)}")
        spec = known.specs.get(key)
        try:
            value = value if spec is None else spec.check(value)
        except Refused as e:
            raise Refused(f"{path}: {e}") from None
        top, *inner = key.split(".")
        place = out.setdefault(top, deepcopy(values[top])) if inner else out
        for part in inner[:-1]:
            place = place[part]
        place[inner[-1] if inner else top] = value
    return out


def _flat(change: Mapping[str, Any], known: Keys, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{optim: {lr: 1}}` as `optim.lr`, down to the keys that hold a dict themselves."""
    for key, value in change.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in known.specs:
            yield from _flat(value, known, f"{path}.")
        else:
            yield path, value


def _unread(dirs: list[Path], key: str, chosen: Mapping[str, Any], keys: Keys, known: Keys) -> str:
    group = key.partition(".")[0]
    if key in keys.specs or (key in conf.groups(dirs) and key not in GROUPS):
        return f"{key} belongs to the whole team; a member may have its own {', '.join((*GROUPS, *KEYS))}"
    if key in GROUPS:
        return f"{key} needs an option or keys: {{{key}:NAME}} (sftc ls {key})"
    near = [o for o in conf.groups(dirs).get(group, ()) if f"{key}" in options.option_keys(dirs, group, o, group).specs]
    if group in GROUPS and near:
        return f"its {group} has no '{key}'; {{{group}:{near[0]},{key}:...}} has"
    return f"nothing reads '{key}'{suggest(key, known.specs) or nearest(key, (*KEYS, *GROUPS))}"
