"""Members that are runs of their own, then one better prediction of them."""

from __future__ import annotations

from typing import Any

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.strategies import suspects
from sftc.strategies.fusing import fuse
from sftc.strategies.members import MAKERS, Unit

TOGETHER = ("seeds", "models", "bagging")  # members that do not wait for one another


class Ensemble:
    """`sftc train strategy=ensemble`, and with members=runs `sftc fuse`.

    Args:
        node: the keys of conf/strategy/ensemble.yaml.

    Raises:
        Refused: choices that contradict each other.
    """

    def __init__(self, **node: Any) -> None:
        self.node = node
        members = node["members"]
        if node["fuse"] is None:
            raise Refused("strategy=ensemble needs a rule: fuse@strategy.fuse=mean (sftc ls fuse)")
        if members == "runs" and not node["runs"]:
            raise Refused("strategy.members=runs needs finished runs: strategy.runs=[RUN,RUN]")
        if members != "runs" and node["runs"]:
            raise Refused(f"strategy.runs is for members=runs, not members={members}: leave one of them out")
        if node["models"] and members not in ("models", "folds"):
            raise Refused(
                f"strategy.models is for members=models or folds, not members={members}: leave one of them out"
            )
        if node["lockstep"] and members not in TOGETHER:
            raise Refused(f"strategy.lockstep: {members} follow one another; it is for {', '.join(TOGETHER)}")
        if node["lockstep"] and node["member_epochs"]:
            raise Refused("strategy.member_epochs: in lockstep all members learn as long; leave one of the two out")

    def run(self, lab: Lab) -> None:
        node = self.node
        if node["members"] == "runs":
            units = [Unit(name, [lab.open(path)]) for name, path in _names(node["runs"]).items()]
        else:
            units = MAKERS[node["members"]](lab, node)
        suspects.note(lab, units)
        fuse(lab, units, node["fuse"], temperature=node["temperature"], leaks=node["leaks"])


def _names(paths: list[str]) -> dict[str, str]:
    """A short name for each run: its folder's, with a number where two have the same."""
    out: dict[str, str] = {}
    for path in paths:
        name = base = str(path).rstrip("/").rpartition("/")[2]
        n = 2
        while name in out:
            name, n = f"{base}-{n}", n + 1
        out[name] = path
    return out
