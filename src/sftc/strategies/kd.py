"""Teachers -> a student: alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), and further terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.loop import Fitted
from sftc.objective import Learner, Peer
from sftc.strategies import comparison, teachers
from sftc.strategies.recipe import Recipe
from sftc.strategies.teachers import Taught
from sftc.types import Teacher

ALONE = {"rounds": 1, "generations": 1, "peers": 1, "peer": None, "teacher": None, "baseline": False, "choose": "all"}


class KD:
    """`sftc train strategy=kd`: a student learns from labels and teachers (Hinton et al. 2015).

    Peers teach each other (Zhang et al. 2018); generations follow one another (Furlanello et al. 2018); rounds go on
    from the student until it is good enough. Each generation and round is a kd run of its own.

    Args:
        node: the keys of conf/strategy/kd.yaml.

    Raises:
        Refused: choices that contradict each other.
    """

    def __init__(self, **node: Any) -> None:
        self.node = node
        self.peers: int = node["peers"]
        self.generations: int = node["generations"]
        self.rounds: int = node["rounds"]
        self.recipe = Recipe(node)
        self._asked: dict[str, Teacher] = {}
        self._check()

    def run(self, lab: Lab) -> None:
        paths = self._paths(lab)
        if self.rounds > 1:
            self._in_rounds(lab, paths)
        elif self.peers > 1:
            self._together(lab, self._admitted(lab, paths))
        else:
            for n in range(1, self.generations):
                paths = [_path(self._member(lab, f"generation{n}", paths, seed=lab.seed + n))]
            taught = self._admitted(lab, paths)
            (fitted,) = lab.fit(self._learner(lab, lab, taught))
            self._keep(lab, fitted, taught)

    def _together(self, lab: Lab, taught: list[Taught]) -> None:
        """Peers, each a run of its own; the first is this run's student. One forward per model and batch."""
        names = [f"peer{n}" for n in range(self.peers)]
        homes = [lab, *(self._peer(lab, n) for n in range(1, self.peers))]
        learners = [
            self._learner(lab, home, taught, [Peer(other) for other in names if other != name], name)
            for home, name in zip(homes, names, strict=True)
        ]
        first, *others = lab.fit(*learners)
        for home, fitted in zip(homes[1:], others, strict=True):
            home.keep(fitted)
        self._keep(lab, first, taught, dict(zip(names[1:], homes[1:], strict=True)))

    def _in_rounds(self, lab: Lab, paths: list[str]) -> None:
        """From the student on, with it as a further teacher, until the target is reached; the best round is kept."""
        homes: dict[str, Lab] = {}
        start, known = {}, list(paths)
        for n in range(self.rounds):
            home = homes[f"round{n}"] = self._member(lab, f"round{n}", known, **start)
            if _reached(home, lab.settings.budget.target):
                break
            known = [*known, _path(home)]
            start = {"model": {**home.run.config["model"], "checkpoint": _path(home)}}
        best = max(homes.values(), key=_goodness)
        self._keep(lab, best.fitted(), self._admitted(lab, paths), homes)

    def _peer(self, lab: Lab, n: int) -> Lab:
        groups = {} if self.node["peer"] is None else {"model": self.node["peer"]}
        return lab.fork(f"peer{n}", seed=lab.seed + n, strategy={"name": "kd", **self.node}, **groups)

    def _member(self, lab: Lab, name: str, teachers: list[str], **groups: Any) -> Lab:
        """A kd run inside this one: one round, one generation, from these teachers."""
        node = {**self.node, **ALONE, "teachers": teachers}
        home = lab.fork(name, strategy={"name": "kd", **node}, **groups)
        if not home.run.finished:
            KD(**node).run(home)
        return home

    def _paths(self, lab: Lab) -> list[str]:
        """Run folders of the teachers; one is made first if none is named."""
        node = self.node
        if node["teachers"] or self.peers > 1:
            return [str(path) for path in node["teachers"]]
        if node["teacher"] is None:
            raise Refused(
                "strategy=kd has no teacher: name finished runs, strategy.teachers=[RUN], "
                "or a model to fine-tune first, model@strategy.teacher=resnet50"
            )
        how = {k: node[f"teacher_{k}"] for k in ("epochs", "lr", "seed")}
        return [teachers.made(lab, node["teacher"], reuse=node["reuse"], **how)]

    def _admitted(self, lab: Lab, paths: list[str]) -> list[Taught]:
        """The teachers, held against the student's validation rows; of candidates the best, if that was asked for."""
        node = self.node
        mine = not node["teachers"] and node["teacher_epochs"] != 0  # one we trained ourselves is told, not refused
        taps = self.recipe.taps()
        if paths and max(taps, default=0) >= len(paths):
            raise Refused(f"strategy.terms: of={max(taps)}, and there are {len(paths)} teachers, counted from 0")
        weak = None if mine else bool(node["allow_weak"])
        taught = [
            teachers.admit(lab, f"teacher{i}", path, taps.get(i, ()), map_classes=node["map_classes"], allow_weak=weak)
            for i, path in enumerate(paths)
        ]
        for remark in (remark for each in taught for remark in each.remarks):
            lab.watch.say(remark)
        if len(taught) > 1:
            lab.watch.say(comparison.candidates(taught, lab.task.monitor))
        if node["choose"] == "best" and taught:
            sign = 1 if lab.task.maximize else -1
            return [max(taught, key=lambda t: sign * t.metrics[lab.task.monitor])]
        return taught

    def _learner(
        self, lab: Lab, home: Lab, taught: list[Taught], peers: list[Peer] | None = None, name: str = "student"
    ) -> Learner:
        scores = [t.val.scores for t in taught]
        return home.learner(
            home.model(),
            terms=self.recipe.terms(lab, taught),
            teachers=[*(self._answering(lab, each) for each in taught), *(peers or [])],
            reference=torch.stack(scores).mean(0) if scores else None,
            beside={f"teacher {t.name}": t.metrics[lab.task.monitor] for t in taught},
            name=name,
        )

    def _answering(self, lab: Lab, taught: Taught) -> Teacher:
        """Set up once per teacher, whoever learns from it, so that peers share one pass."""
        if taught.path not in self._asked:
            node = self.node
            how = teachers.resolved(lab, node["teacher_outputs"], bool(self.recipe.on_features()))
            heat = node["temperature"] if node["temperature_end"] is None else None
            asked = teachers.answering(lab, taught, how=how, temperature=heat, topk=node["cache_topk"])
            self._asked[taught.path] = asked
        return self._asked[taught.path]

    def _keep(self, lab: Lab, fitted: Fitted, taught: list[Taught], others: dict[str, Lab] | None = None) -> None:
        others = dict(others or {})
        if self.node["baseline"]:
            home = others["baseline"] = lab.fork("baseline", seed=lab.seed)
            if not home.run.finished:
                (plain,) = home.fit(home.model())
                home.keep(plain)
        lab.keep(fitted, lambda found: comparison.of(lab, fitted.model, found, taught, others))

    def _check(self) -> None:
        node = self.node
        if sum(n > 1 for n in (self.peers, self.generations, self.rounds)) > 1:
            raise Refused("strategy.peers, generations and rounds are three ways to train students: choose one of them")
        if node["peer"] is not None and self.peers == 1:
            raise Refused("strategy.peer is the model of further students: set strategy.peers=2 or more")
        if node["weights"] is not None and (
            node["team"] != "weighted" or len(node["weights"]) != len(node["teachers"])
        ):
            raise Refused("strategy.weights needs strategy.team=weighted, and as many numbers as strategy.teachers")
        if node["cache_topk"] is not None and node["temperature_end"] is not None:
            raise Refused("strategy.cache_topk: what was left out cannot be re-tempered; leave temperature_end at null")
        if node["cache_topk"] is not None and node["teacher_outputs"] == "live":
            raise Refused("strategy.cache_topk is about stored answers; leave it at null, or teacher_outputs at auto")
        features = self.recipe.on_features()
        if features and node["teacher_outputs"] == "cached":
            raise Refused(
                f"strategy.teacher_outputs=cached holds logits only, and {', '.join(features)} looks at layers; "
                "use teacher_outputs=live"
            )
        if features and self.peers > 1 and not node["teachers"]:
            raise Refused(
                f"{', '.join(features)}: peers offer their logits only; name strategy.teachers=[RUN], or leave it out"
            )


def _path(home: Lab) -> str:
    return str(Path(home.run.path).resolve())


def _reached(home: Lab, target: float | None) -> bool:
    value = home.run.result["val"].get(home.task.monitor)
    if target is None or value is None:
        return False
    return value >= target if home.task.maximize else value <= target


def _goodness(home: Lab) -> float:
    value = home.run.result["val"].get(home.task.monitor)
    return value if home.task.maximize else -value
