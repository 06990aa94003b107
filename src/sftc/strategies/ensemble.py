"""Members that are runs of their own, then one better prediction of them."""

from __future__ import annotations

from typing import Any

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.strategies import suspects
from sftc.strategies.fusing import fuse, possible
from sftc.strategies.members import MAKERS, Unit

TOGETHER = ("seeds", "models", "bagging")  # members that do not wait for one another
PACE = ("epochs", "max_steps", "batch_size", "micro_batch_size", "patience", "target")  # common to a team in lockstep


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
        _check_each(node)

    def run(self, lab: Lab) -> None:
        node = self.node
        if node["members"] == "runs":
            units = [Unit(name, [lab.open(path)]) for name, path in _names(node["runs"]).items()]
        else:
            possible(lab.task, node["fuse"], _count(node))
            units = MAKERS[node["members"]](lab, node)
        suspects.note(lab, units)
        fuse(lab, units, node["fuse"], temperature=node["temperature"], leaks=node["leaks"])


def _count(node: dict[str, Any]) -> int:
    """How many members are made here; folds of one model are one."""
    return len(node["models"]) or (1 if node["members"] == "folds" else node["n"])


def _check_each(node: dict[str, Any]) -> None:
    """Raises Refused: what is set for each member fits neither their number nor the way they are made."""
    each, members, count = node["each"], node["members"], _count(node)
    if each and members == "runs":
        raise Refused("strategy.each is for members that are trained here, not for finished runs; leave it out")
    if len(each) > count:
        what = "models" if members in ("models", "folds") else "members"
        raise Refused(f"strategy.each has entries for {len(each)} {what}, and there are {count}")
    set_here = {key for change in each for key in change}
    if node["lockstep"] and (pace := [key for key in PACE if key in set_here]):
        raise Refused(f"strategy.each: in lockstep all members have the same {', '.join(pace)}; leave one of them out")
    if members == "snapshot" and (own := [key for key in ("model", "seed") if key in set_here]):
        raise Refused(f"strategy.each: snapshots are one model going on from itself; leave {own[0]} out")


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
