"""What a student minimises: the terms of `strategy.terms` with their weights, and what contradicts itself there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.losses import TERMS, Ramp, Team
from sftc.models.surgery import Tapped
from sftc.types import Term

if TYPE_CHECKING:
    from sftc.strategies.teachers import Taught

AT_TEMPERATURE = ("soft", "decoupled", "correlation", "channelwise")  # terms that compare softened probabilities
OF_TEAM = (*AT_TEMPERATURE, "mean_squared")  # terms that hear all teachers as one


class Recipe:
    """The part of a kd node that says what is minimised.

    Raises:
        Refused: nothing would be learned from a teacher, or a term lacks its taps.
    """

    def __init__(self, node: dict[str, Any]) -> None:
        self.node = node
        self.alpha: float = node["alpha"]
        self.alpha_end: float = node["alpha"] if node["alpha_end"] is None else node["alpha_end"]
        self.temperature = Ramp(node["temperature"], node["temperature_end"], node["ramp"])
        counts = [name for name in node["terms"] if name != "truth" and self._weight(name) != 0]
        if not counts:
            raise Refused(
                "no term of strategy.terms learns from a teacher: lower strategy.alpha, or give one of them a weight"
            )
        for name in self.on_features():
            self._term(name, 1.0, None)  # refuses taps that are not given or not in pairs

    def check(self, lab: Lab, *, students: bool) -> None:
        """Raises Refused: the student has no quantiles to compare, or lacks a tap; with `students`, who teach each
        other, a teacher's tap too.
        """
        soft = self.node["terms"]["soft"]
        if soft["form"] == "quantile" and self._weight("soft") != 0 and "quantiles" not in lab.task.offers:
            raise Refused(
                "strategy.terms.soft.form=quantile compares quantiles, which the student has with loss=quantile"
            )
        terms = [self.node["terms"][name] for name in self.on_features()]
        taps = [path for term in terms for path in (*term["student"], *(term["teacher"] if students else ()))]
        if taps:
            Tapped(lab.model(), taps).close()

    def on_features(self) -> list[str]:
        """Terms that look at a teacher's layers."""
        return [name for name, term in self.node["terms"].items() if "of" in term and term["weight"] > 0]

    def taps(self) -> dict[int, list[str]]:
        """Module paths wanted of each teacher, by its number."""
        out: dict[int, list[str]] = {}
        for name in self.on_features():
            term = self.node["terms"][name]
            out.setdefault(term["of"], []).extend(term["teacher"])
        return out

    def terms(self, lab: Lab, taught: list[Taught]) -> dict[str, Term]:
        """The terms that count, each with its weight over the course of training."""
        node = self.node
        team = Team(node["team"], node["space"], self._voices(lab, taught), node["conflict"])
        weights = {name: self._weight(name) for name in node["terms"]}
        return {name: self._term(name, weight, team) for name, weight in weights.items() if weight != 0}

    def _term(self, name: str, weight: float | Ramp, team: Team | None) -> Term:
        more = {k: v for k, v in self.node["terms"][name].items() if k != "weight"}
        if name in AT_TEMPERATURE:
            more["temperature"] = self.temperature
        if name in OF_TEAM:
            more["team"] = team
        return TERMS[name](weight, **more)

    def _weight(self, name: str) -> float | Ramp:
        """alpha goes to the labels, the rest to the soft answers; every other term has its own weight."""
        weight = self.node["terms"][name]["weight"]
        if name not in ("truth", "soft"):
            return weight
        start, end = self.alpha, self.alpha_end
        if name == "soft":
            start, end = 1 - start, 1 - end
        return weight * start if start == end or not weight else Ramp(weight * start, weight * end, self.node["ramp"])

    def _voices(self, lab: Lab, taught: list[Taught]) -> list[float] | None:
        """What each teacher counts: as given, or the better it scores on validation, the more."""
        if self.node["team"] != "weighted" or not taught:
            return None
        if self.node["weights"] is not None:
            return [float(w) for w in self.node["weights"]]
        scores = [t.metrics[lab.task.monitor] for t in taught]
        return [max(s, 1e-6) if lab.task.maximize else 1 / max(s, 1e-6) for s in scores]
