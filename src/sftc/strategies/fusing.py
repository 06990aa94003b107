"""Members in, one fused run out: what `sftc fuse` does, and every ensemble at its end.

Honest: what is printed for validation was fitted on other rows of it, what is kept on all of it, and test is read once.
Stored predictions are used again where they are about the same weights.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from sftc import fusion
from sftc.errors import Refused
from sftc.fusion.honest import out_of_fold, tempered
from sftc.lab import Lab, teams
from sftc.positions import SAMPLE, Positions, sampled
from sftc.strategies import dense, heldout, souping, weighing
from sftc.strategies.members import Unit
from sftc.strategies.panel import Panel
from sftc.types import Metrics, Predictions, Task

ALL = ("vote", "mean", "mean_logit", "rank", "median", "trimmed", "weighted", "greedy", "stacking", "cascade")

BOOSTINGS = ("weighted_vote", "weighted_median")  # rules that take what boosting gave each member


class Voice:
    """What a unit says: its predictions of each split, their marks, and what it costs."""

    def __init__(self, lab: Lab, unit: Unit) -> None:
        self.unit = unit
        self.found: dict[str, Any] = {}
        self.marks: dict[str, dict[str, str]] = {}
        results = [home.run.result for home in unit.homes]
        for split in weighing.splits(results):
            pairs = zip(unit.homes, results, strict=True)
            parts = [weighing.predictions(lab, home, result["fingerprints"], split) for home, result in pairs]
            self.marks[split] = parts[0][1]
            self.found[split] = dense.mean([p for p, _ in parts], lab.run.path)
        self.whole = {s: p for s, p in self.found.items() if isinstance(p, Positions)}  # of pixels: all of them
        self.found = {s: sampled(p) for s, p in self.found.items()}
        self.params: int = sum(r["params"] for r in results)
        self.ms: float = sum(r.get("ms_per_row") or 0.0 for r in results)


class Outcome:
    """A rule, fitted: its honest scores on validation, its scores on test, and what they are worth."""

    def __init__(self, lab: Lab, voices: list[Voice], panel: Panel, rule: dict[str, Any], heat: bool) -> None:
        self.rule: str = rule["name"]
        self.options = {k: v for k, v in rule.items() if k not in ("name", "taps")}
        self.voices = voices
        self.taps = _taps(rule.get("taps") or [], len(voices))
        if any(self.taps) and any(len(v.unit.homes) > 1 for v in voices):
            raise Refused("fuse.taps: folds of a model have no layer in common; leave taps out, or fuse single models")
        if any(self.taps) and len(voices[0].found["val"].row.unique()) < len(voices[0].found["val"].row):
            raise Refused(
                "fuse.taps: layers are averaged over a row, and each row has several answers here; use stacking"
            )
        self.task = lab.task
        self.made_with = self._options()
        self.of_folds: list[fusion.Pooling] = []  # the rule, fitted without each fold of validation
        self.heats: list[fusion.Temperature] = []  # likewise
        first = voices[0].found
        features = {s: teams.features(lab, [v.unit.homes[0] for v in voices], self.taps, s) for s in first}
        features["val"] = [panel.ordered(f) for f in features["val"]]
        self.pooling = self.make()
        honest = self._held_out(lab, panel, features["val"])
        temperature = fusion.Temperature(lab.task) if heat else None
        if temperature is not None:
            honest, self.heats = tempered(temperature, honest, panel.target, panel.fold)
        self.temperature = 1.0 if temperature is None else temperature.value
        self.found: dict[str, Any] = {"val": _like(first["val"], panel.restored(honest))}
        if "test" in first:
            fused = self.pooling.apply(panel.scores["test"], features["test"])
            self.found["test"] = _like(first["test"], fused if temperature is None else temperature.apply(fused))
        self.metrics: dict[str, Metrics] = {s: weighing.scored(lab.task, p) for s, p in self.found.items()}
        self.everywhere: dense.Everywhere | None = None
        if voices[0].whole:
            said = {s: [v.whole[s] for v in voices] for s in first}
            self.everywhere = dense.Everywhere(self, said, panel.restored(panel.fold))
            self.metrics = self.everywhere.metrics()

    def make(self, members: list[int] | None = None) -> fusion.Pooling:
        """The rule, not fitted yet; of some of the members only, if they are named by number."""
        return fusion.make(self.rule, self.task, **self._options(members))

    def _options(self, members: list[int] | None = None) -> dict[str, Any]:
        voices = self.voices if members is None else [self.voices[i] for i in members]
        options = dict(self.options)
        if options.get("weights") is not None and members is not None:
            options["weights"] = [options["weights"][i] for i in members]
        elif self.rule in BOOSTINGS and options.get("weights") is None:
            known = [v.unit.weight for v in voices]
            options["weights"] = [1.0] * len(voices) if None in known else known
        if self.rule == "cascade":
            options["costs"] = [float(v.params) for v in voices]
        return options

    def _held_out(self, lab: Lab, panel: Panel, features: list[Tensor]) -> Tensor:
        """Fused scores of validation rows that the rule was not fitted on; and the rule, fitted for use."""
        trained_on = None if features else heldout.by_folds(lab, self.voices)
        val = panel.scores["val"]
        if trained_on is None:
            out, self.of_folds = out_of_fold(self.pooling, val, panel.target, panel.fold, features)
            return out
        self.pooling.fit(*trained_on)  # on training rows that none of the folds had seen: validation stays fresh
        return self.pooling.apply(val)


def fuse(lab: Lab, units: list[Unit], rule: dict[str, Any], *, temperature: bool, leaks: bool) -> None:
    """Fuse the units by a rule, or by all that apply, and keep the outcome as this run."""
    if lab.run.finished:
        return
    begun = time.perf_counter()
    weighing.check(lab, units, leaks)
    voices = [Voice(lab, unit) for unit in units]
    weighing.comparable(voices)
    if rule["name"] == "soup":
        souping.soup(lab, voices, rule)
        return
    tried = _all(lab) if rule["name"] == "all" else [{**rule, "name": _named(lab, rule["name"], units)}]
    outcomes, failed = _fitted(lab, voices, tried, temperature)
    best = min(outcomes, key=lambda o: weighing.cost(o.metrics["val"]))
    members = {unit.name: [home.run for home in unit.homes] for unit in units}
    more = weighing.tables(lab, voices, outcomes, best)
    if best.everywhere is not None:
        best.found = best.everywhere.predictions(lab.run.path)
        for split, p in voices[0].whole.items():
            if len(p) > SAMPLE:
                lab.watch.say(dense.told(split, p))
    more["team"] += [{"name": f"fuse {name}", "failed": why} for name, why in failed.items()]
    more |= heldout.out_of_bag(lab, units)
    more["chosen_on_validation"] = heldout.chosen(units)
    teams.keep(lab, best, members, voices[0].marks, time.perf_counter() - begun, more)


def _fitted(
    lab: Lab, voices: list[Voice], tried: list[dict[str, Any]], heat: bool
) -> tuple[list[Outcome], dict[str, str]]:
    """Every rule, fitted; of several, those that cannot be are left out: name -> why, in a line.

    Raises:
        Refused: the only one cannot be, or none of them.
    """
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    panel, heat = Panel(lab, voices), heat and "probabilities" in lab.task.offers
    if heat and int(panel.fold.max()) < 1:  # none could be tried on rows it has not seen
        heat = False
        lab.watch.say("validation has fewer than two labelled rows: no temperature")
    for rule in tried:
        try:
            outcomes.append(Outcome(lab, voices, panel, rule, heat))
        except (Refused, RuntimeError, ValueError, ArithmeticError) as e:  # linear algebra's are RuntimeErrors
            if len(tried) == 1:
                raise
            said = str(e).strip().partition("\n")[0] or type(e).__name__
            failed[rule["name"]] = said
    if not outcomes:
        raise Refused(f"none of the rules can be fitted; fuse={next(iter(failed))}: {next(iter(failed.values()))}")
    return outcomes, failed


def possible(task: Task, rule: dict[str, Any], count: int) -> None:
    """For who is about to train `count` members. Raises Refused: they could not be fused by this rule."""
    name, options = rule["name"], {k: v for k, v in rule.items() if k not in ("name", "taps")}
    if name not in fusion.FUSERS:  # all, auto and soup have nothing that could be wrong
        return
    weights, taps = options.get("weights"), _taps(rule.get("taps") or [], count)
    if weights is not None and len(weights) != count:
        raise Refused(f"fuse={name}: there are {len(weights)} weights for {count} members; give one each")
    if name == "features" and not any(taps):
        raise Refused("fuse=features needs tapped features of the members; name a tap, or use fuse=stacking")
    if name in BOOSTINGS and weights is None:
        options["weights"] = [1.0] * count
    if name == "cascade":
        options["costs"] = [1.0] * count
    fusion.make(name, task, **options)


def _named(lab: Lab, name: str, units: list[Unit]) -> str:
    """`auto`: what belongs to the members."""
    if name != "auto":
        return name
    if all(unit.weight is not None for unit in units):
        return "weighted_vote" if "classes" in lab.task.offers else "weighted_median"
    return "stacking" if all(unit.folds for unit in units) and len(units) > 1 else "mean"


def _all(lab: Lab) -> list[dict[str, Any]]:
    """Every rule that makes sense for the task and needs nothing more than scores."""
    out = [{"name": "best"}]
    for name in ALL:
        try:
            fusion.make(name, lab.task, **({"costs": [1.0]} if name == "cascade" else {}))
        except Refused:
            continue
        out.append({"name": name})
    return out


def _like(reference: Predictions, scores: Tensor) -> Predictions:
    return Predictions(scores.float(), reference.target, reference.row)


def _taps(paths: list[Any], count: int) -> list[list[str]]:
    """For each member the paths it is tapped at: one for all, or one each."""
    if len(paths) not in (0, 1, count):
        raise Refused(f"fuse.taps={paths} must hold one module path for all, or one for each of {count} members")
    each = paths * count if len(paths) == 1 else paths or [None] * count
    return [[] if path is None else [str(path)] for path in each]
