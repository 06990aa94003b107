"""Teachers -> a student: alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), and further terms."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.loop import Fitted
from sftc.objective import Learner, Peer
from sftc.positions import Positions
from sftc.strategies import comparison, contradictions, teachers
from sftc.strategies.recipe import Recipe
from sftc.strategies.teachers import Taught
from sftc.types import Teacher

ALONE = {"rounds": 1, "generations": 1, "teacher": None, "baseline": False}  # of one round, of one generation


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
        self.named = [str(path) for path in node["teachers"]]
        self.recipe = Recipe(node)
        self._asked: dict[str, Teacher] = {}
        contradictions.refuse(node, self.recipe.on_features())

    def run(self, lab: Lab) -> None:
        # What would be refused later is refused before a teacher is trained for it.
        self._outputs(lab)
        self.recipe.check(lab, students=self.generations > 1)
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
            start = {"model": {**home.run.config["model"], "pretrained": False, "checkpoint": _path(home)}}
        best = max(homes.values(), key=_goodness)
        self._keep(lab, best.fitted(), self._admitted(lab, paths), homes)

    def _peer(self, lab: Lab, n: int) -> Lab:
        groups = {} if self.node["peer"] is None else {"model": self.node["peer"]}
        return lab.fork(f"peer{n}", seed=lab.seed + n, strategy={"name": "kd", **self.node}, **groups)

    def _member(self, lab: Lab, name: str, teachers: list[str], **groups: Any) -> Lab:
        """A kd run inside this one: one round, one generation, from these teachers."""
        weak = self.node["allow_weak"] or self._ours(teachers)
        node = {**self.node, **ALONE, "teachers": teachers, "allow_weak": weak}
        home = lab.fork(name, strategy={"name": "kd", **node}, **groups)
        if not home.run.finished:
            KD(**node).run(home)
        return home

    def _paths(self, lab: Lab) -> list[str]:
        """Run folders of the teachers; one is made first if none is named."""
        node = self.node
        if self.named or self.peers > 1:
            return self.named
        if node["teacher"] is None:
            raise Refused(
                "strategy=kd has no teacher: name finished runs, strategy.teachers=[RUN], "
                "or a model to fine-tune first, model@strategy.teacher=resnet50"
            )
        how = {k: node[f"teacher_{k}"] for k in ("epochs", "lr", "seed")}
        taps = self.recipe.taps().get(0, ())
        return [teachers.made(lab, node["teacher"], reuse=node["reuse"], taps=taps, **how)]

    def _ours(self, paths: list[str]) -> bool:
        """Whether teachers were trained by this story: how weak they are is then told, and nothing is refused."""
        return paths != self.named and self.node["teacher_epochs"] != 0

    def _admitted(self, lab: Lab, paths: list[str]) -> list[Taught]:
        """The teachers, held against the student's validation rows; of candidates the best, if that was asked for."""
        node = self.node
        taps = self.recipe.taps()
        weak = None if self._ours(paths) else bool(node["allow_weak"])
        taught = [
            teachers.admit(lab, f"teacher{i}", path, taps.get(i, ()), map_classes=node["map_classes"], allow_weak=weak)
            for i, path in enumerate(paths)
        ]
        names = Counter(each.name for each in taught)
        for i, each in enumerate(taught):
            if names[each.name] > 1:
                each.name += f" {i}"
        for remark in (remark for each in taught for remark in each.remarks):
            lab.watch.say(remark)
        if len(taught) > 1:
            lab.watch.say(comparison.candidates(taught, lab.task))
        if node["choose"] == "best" and taught:
            sign = 1 if lab.task.maximize else -1
            return [max(taught, key=lambda t: sign * t.metrics[lab.task.monitor])]
        return taught

    def _learner(
        self, lab: Lab, home: Lab, taught: list[Taught], peers: list[Peer] | None = None, name: str = "student"
    ) -> Learner:
        # Of pixels the agreement is not logged: it would hold the scores of all of them through the whole training.
        scores = [t.val.scores for t in taught if not isinstance(t.val, Positions)]
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
            how = self._outputs(lab)
            heat = node["temperature"] if node["temperature_end"] is None else None
            asked = teachers.answering(lab, taught, how=how, temperature=heat, topk=node["cache_topk"])
            self._asked[taught.path] = asked
        return self._asked[taught.path]

    def _outputs(self, lab: Lab) -> str:
        """live or cached."""
        node = self.node
        return teachers.resolved(lab, node["teacher_outputs"], bool(self.recipe.on_features()), node["cache_topk"])

    def _keep(self, lab: Lab, fitted: Fitted, taught: list[Taught], others: dict[str, Lab] | None = None) -> None:
        others = dict(others or {})
        if self.node["baseline"]:
            home = others["baseline"] = lab.fork("baseline", seed=lab.seed)
            if not home.run.finished:
                (plain,) = home.fit(home.model())
                home.keep(plain)
        lab.keep(fitted, lambda found: comparison.of(lab, fitted.model, found, taught, others))


def _path(home: Lab) -> str:
    return str(Path(home.run.path).resolve())


def _reached(home: Lab, target: float | None) -> bool:
    value = home.run.result["val"].get(home.task.monitor)
    if target is None or value is None:
        return False
    return value >= target if home.task.maximize else value <= target


def _goodness(home: Lab) -> float:
    value = home.run.result["val"].get(home.task.monitor)
    if value is None:  # not a number
        return -math.inf
    return value if home.task.maximize else -value
