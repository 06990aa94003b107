"""What a kd node may not ask for: choices that contradict each other, seen before any data is read."""

from __future__ import annotations

from typing import Any

from sftc.errors import Refused


def refuse(node: dict[str, Any], features: list[str]) -> None:
    """Raises Refused.

    Args:
        features: names of the terms that look at a teacher's layers.
    """
    ways = [name for name in ("peers", "generations", "rounds") if node[name] > 1]
    if len(ways) > 1:
        raise Refused("strategy.peers, generations and rounds are three ways to train students: choose one of them")
    if node["peer"] is not None and "peers" not in ways:
        raise Refused("strategy.peer is the model of further students: set strategy.peers=2 or more")
    _refuse_weights(node, ways)
    _refuse_outputs(node, features)
    if features:
        _refuse_layers(node, ways, features)


def _refuse_weights(node: dict[str, Any], ways: list[str]) -> None:
    fits = node["team"] == "weighted" and len(node["weights"] or ()) == len(node["teachers"])
    if node["weights"] is not None and not fits:
        raise Refused("strategy.weights needs strategy.team=weighted, and as many numbers as strategy.teachers")
    if node["weights"] is not None and (ways or node["choose"] == "best"):
        way = ways[0] if ways else "choose=best"
        raise Refused(
            f"strategy.weights={node['weights']}: {way} changes how many teachers there are; leave it at null"
        )
    if node["team"] == "weighted" and "peers" in ways:
        raise Refused("strategy.team=weighted: peers have no score to be weighed by when they begin; use team=mean")


def _refuse_outputs(node: dict[str, Any], features: list[str]) -> None:
    if node["cache_topk"] is not None and node["temperature_end"] is not None:
        raise Refused("strategy.cache_topk: what was left out cannot be re-tempered; leave temperature_end at null")
    if node["cache_topk"] is not None and node["teacher_outputs"] == "live":
        raise Refused("strategy.cache_topk is about stored answers; leave it at null, or teacher_outputs at auto")
    if features and node["teacher_outputs"] == "cached":
        raise Refused(
            f"strategy.teacher_outputs=cached holds logits only, and {', '.join(features)} looks at layers; "
            "use teacher_outputs=live"
        )


def _refuse_layers(node: dict[str, Any], ways: list[str], features: list[str]) -> None:
    names = ", ".join(features)
    if node["choose"] == "best":
        raise Refused(f"{names}: strategy.choose=best may take any teacher, and layers are one's own; use choose=all")
    if "peers" in ways and not node["teachers"]:
        raise Refused(f"{names}: peers offer their logits only; name strategy.teachers=[RUN], or leave it out")
    there = 1 if "generations" in ways else max(1, len(node["teachers"]))
    for name in features:
        if (of := node["terms"][name]["of"]) >= there:
            count = f"is {there} teacher" if there == 1 else f"are {there} teachers"
            raise Refused(f"strategy.terms.{name}.of={of}, and there {count}, counted from 0")
