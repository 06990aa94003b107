"""Who is in a leader's team: entries of `leaders` and `followers` completed by the strategy's own keys."""

from __future__ import annotations

import re
from typing import Any

from sftc.errors import Refused, choose, nearest
from sftc.models.follower import COMBINE
from sftc.models.keys import LATER
from sftc.models.keys import head as check_head

OF_LEADER = ("source", "source_epochs", "source_lr", "source_seed", "reuse", "keep", "keep_lr", "optim")
OF_LEADER += ("head", "head_hidden", "head_channels", "folds", "probe_epochs")
TAKEN = ("source", "scratch", "student")
Entries = dict[str, dict[str, Any]]


def key(name: str, of: str) -> str:
    """How a leader's key is typed: `strategy.keep`, which every leader has unless it has its own."""
    return f"strategy.{of} (leader {name})"


def leaders(node: dict[str, Any]) -> Entries:
    """Raises Refused: a key that no leader has, a value that cannot be."""
    found = _entries(node["leaders"], {k: node[k] for k in OF_LEADER}, "leaders")
    if not found:
        raise Refused("strategy.leaders={} leaves nobody to follow; give one entry, {leader: {}}")
    for name, entry in found.items():
        if node["leaders"][name].get("source") == "auto":
            raise Refused(f"strategy.leaders.{name}.source=auto: name a run, pretrained, or data for each leader")
        entry["source"] = entry["source"] if isinstance(entry["source"], list) else [entry["source"]]
        if not entry["source"] or not all(isinstance(s, str | dict) for s in entry["source"]):
            raise Refused(
                f"{key(name, 'source')} is a run, pretrained, data such as {{classes:[0,1]}}, or a list of these"
            )
        _number(name, "keep_lr", entry["keep_lr"], 0)
        head(name, entry)
    return found


def head(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The keys of a model node that say a leader's new head; none where it is the source's own kind.

    Raises:
        Refused: no such head, or widths that are none.
    """
    if entry["head"] is None:
        return {}
    found = {k: entry[k] for k in LATER}
    try:
        check_head(found)
    except Refused as e:
        raise Refused(str(e).replace("model.", f"leader {name}: strategy.")) from None
    return found


def followers(node: dict[str, Any]) -> Entries:
    """Raises Refused: a key that no follower has, a value that cannot be."""
    choose("strategy.combine", node["combine"], COMBINE)
    given = {f"follower{i}": own for i, own in enumerate(node["followers"])}
    found = _entries(given, node["follower"], "followers")
    if both := found.keys() & node["leaders"].keys():
        raise Refused(f"strategy: {sorted(both)[0]} is a leader and a follower; nobody can follow himself")
    for name, entry in found.items():
        choose(f"model of {name}", entry["model"], ("mlp", "linear", "simple_cnn"))
        entry["leaders"] = _heard(name, entry["leaders"], node["leaders"], found)
        many = len(entry["leaders"])
        if isinstance(entry["tap"], list) and len(entry["tap"]) != many:
            raise Refused(f"strategy.followers: tap={entry['tap']} of {name} must name one for each of {many} leaders")
        _number(name, "alpha", entry["alpha"], 0, 1)
        _number(name, "weight", entry["weight"], 0)
        if entry["alpha"] < 1 and (entry["data"] or node["weighting"] == "uncertain"):
            why = "a task of its own" if entry["data"] else "strategy.weighting=uncertain"
            raise Refused(f"strategy.followers: alpha={entry['alpha']} of {name} and {why} do not go together")
    return found


def _heard(name: str, given: Any, leaders: dict[str, Any], followers: Entries) -> list[str]:
    """Names of the leaders that a follower reads. Raises Refused: one is none, or named twice."""
    heard = list(leaders) if given is None else given
    if not isinstance(heard, list) or not heard or len({str(x) for x in heard}) < len(heard):
        raise Refused(f"strategy.followers: leaders={given} of {name} must name leaders, each once, such as [leader]")
    for leader in map(str, heard):
        if leader in followers:
            whom = "itself" if leader == name else f"{leader}, which follows too"
            raise Refused(f"strategy.followers: {name} cannot follow {whom}; name leaders: {', '.join(leaders)}")
        choose(f"strategy.followers: leaders of {name}", leader, leaders)
    return [str(x) for x in heard]


def check_joint(node: dict[str, Any]) -> None:
    """Raises Refused: what cannot be learned together."""
    if not node["followers"]:
        raise Refused("strategy.joint=true trains leaders and those who follow them: give followers, or joint=false")
    if node["combine"] == "sum" and len(node["leaders"]) > 1:
        why = "one step cannot count its rows once for leaders and once per leader for followers"
        raise Refused(f"strategy.joint=true and combine=sum with several leaders: {why}; use combine=concat")
    if node["leader_outputs"] == "cached":
        raise Refused("strategy.joint=true changes what the leader says all the time; leave leader_outputs at auto")


def _entries(given: dict[str, Any], common: dict[str, Any], what: str) -> Entries:
    out = {}
    for name, own in given.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name.split("-")[0] in TAKEN:
            raise Refused(f"strategy.{what}.{name} is no name for a member: letters, digits and _, and none of {TAKEN}")
        if not isinstance(own, dict):
            raise Refused(f"strategy.{what}: {name}={own} must be keys such as {{}} or {{optim:{{lr:0.01}}}}")
        if unknown := own.keys() - common.keys():
            word = sorted(unknown)[0]
            raise Refused(f"strategy.{what}: {word} of {name} is not known{nearest(word, common)}")
        out[name] = {**common, **own}
    return out


def _number(name: str, key: str, value: Any, least: float, most: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise Refused(f"strategy: {key}={value} of {name} must be a number from {least:g} to {most:g}")
