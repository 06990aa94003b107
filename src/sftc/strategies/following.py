"""Followers: their nodes, what they minimise, and sources through which they hear their leaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sftc import models
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.lab.through import Said, Through
from sftc.losses import Truth, Uncertain
from sftc.models import Follower
from sftc.objective import Learner, Live, Peer
from sftc.strategies import teachers
from sftc.strategies.recipe import Recipe
from sftc.strategies.teachers import Taught
from sftc.types import Predictions, Source, Teacher, Term

NET = {"mlp": ("hidden", "dropout", "batch_norm"), "linear": ()}
NET["simple_cnn"] = ("channels", *NET["mlp"])
SOFT = {"weight": 1.0, "form": "forward", "standardize": False}
ALONE = {"alpha_end": None, "temperature_end": None, "ramp": "linear", "team": "mean", "space": "probability"}
ALONE |= {"weights": None, "conflict": "vote"}


class Following:
    """A follower by itself, on finished leaders: a member of strategy=leader that can be gone on with alone.

    Args:
        leaders: their run folders; once a run refers to them, its references say where they are.
        alpha: share of the labels, the rest is for the leaders' soft answers at `temperature`.
        outputs: live; cached: the leaders' stored logits; or joint: the leader learned together with it.
        names: what who trains several followers calls the leaders.
        weight: what its task counts among those of one fit; uncertain: or learned (Kendall et al. 2018).
    """

    def __init__(
        self,
        leaders: list[str],
        alpha: float,
        temperature: float,
        outputs: str,
        weight: float = 1.0,
        uncertain: bool = False,
        names: list[str] | None = None,
    ) -> None:
        self.leaders = leaders
        self.names = [f"leader{i}" for i in range(len(leaders))] if names is None else names
        self.outputs = outputs
        self.weight = weight
        self.uncertain = uncertain
        self.teaches = alpha < 1
        terms = {"truth": {"weight": 1.0}, "soft": SOFT}
        node = {**ALONE, "alpha": alpha, "temperature": temperature, "terms": terms}
        self.recipe = Recipe(node) if self.teaches else None

    def learner(self, lab: Lab, name: str = "student", source: int = 0) -> Learner:
        """The follower as it starts. Its leaders answer through `sources`."""
        model = lab.model()
        assert isinstance(model, Follower)
        self.refer(lab)
        model.seat([self._home(lab, i).restore() for i in range(len(self.leaders))], self.names)
        summed = model.combine == "sum"
        said = [Said(name) for name in self.names[: 1 if summed else None]] if self.teaches else []
        # Of M * N rows each is one leader's: the objective takes their mean, and the sum is over leaders.
        terms = self._terms(lab, len(self.leaders) if summed else 1)
        return lab.learner(model, terms=terms, teachers=said, name=name, source=source)

    def beside(self, lab: Lab, leaders: Sequence[Learner], name: str, source: int) -> Learner:
        """The follower as it starts together with its leaders, whom its gradients reach."""
        model = lab.model()
        assert isinstance(model, Follower)
        model.seat([leader.student for leader in leaders], self.names)
        said = [Peer(leader.name) for leader in leaders] if self.teaches else []
        through = [leader.name for leader in leaders]
        return lab.learner(model, terms=self._terms(lab, 1), teachers=said, name=name, source=source, through=through)

    def refer(self, lab: Lab) -> None:
        """Note where the leaders live, and the hash of their weights."""
        for i, path in enumerate(self.leaders):
            if lab.run.reference(f"leader{i}") is None:
                lab.run.refer(f"leader{i}", lab.open(path).run.path)

    def _terms(self, lab: Lab, times: int) -> dict[str, Term]:
        terms: dict[str, Term] = {"truth": Uncertain() if self.uncertain else Truth()}
        if self.recipe is not None:
            terms = self.recipe.terms(lab, [])
        for term in terms.values():
            assert not callable(term.weight)
            term.weight *= times * self.weight
        return terms

    def _home(self, lab: Lab, i: int) -> Lab:
        return lab.open(str(lab.run.reference(f"leader{i}") or self.leaders[i]))

    def homes(self, lab: Lab) -> dict[str, Lab]:
        """The labs of its leaders, by name."""
        return {name: self._home(lab, i) for i, name in enumerate(self.names)}

    def sources(self, lab: Lab, learners: Sequence[Learner], homes: dict[str, Lab]) -> tuple[Source, Source]:
        """Train and validation rows of `lab` as all these followers hear them.

        Args:
            homes: of all the leaders that any of them reads.
        """
        followers = [x.student for x in learners if isinstance(x.student, Follower)]
        taps: dict[str, set[str]] = {name: set() for name in homes}
        for follower in followers:
            for i, name in enumerate(follower.names):
                taps[name].update(follower.wanted(i))
        live = {name: Live(home.restore(), lab.device, sorted(taps[name])) for name, home in homes.items()}
        asked: dict[str, Teacher] = dict(live)
        if self.outputs == "cached":
            asked = {name: self._stored(lab, home) for name, home in homes.items()}
        train, val = lab.source("train", train=True, rows=lab.rows), lab.source("val")
        # Where losses are summed, rows are multiplied; for scores they must not be.
        summed = followers[0].combine == "sum"
        return Through(train, asked, followers), val if summed else Through(val, live, followers)

    def _stored(self, lab: Lab, home: Lab) -> Teacher:
        silent = torch.empty(0)
        taught = Taught(home, Live(home.restore(), lab.device), Predictions(silent, silent, silent), {}, [])
        return teachers.answering(lab, taught, how="cached", temperature=None, topk=None)

    def run(self, lab: Lab) -> None:
        if self.outputs == "joint":
            raise Refused(f"{lab.run.path} learns together with its leader: go on with their team")
        if not lab.run.finished:
            learner = self.learner(lab)
            (fitted,) = lab.fit(learner, sources=[self.sources(lab, [learner], self.homes(lab))])
            lab.keep(fitted)


def outputs(lab: Lab, how: str, followers: dict[str, dict[str, Any]]) -> str:
    """live or cached. Raises Refused: cached was asked for, and cannot be."""
    taps = {t for f in followers.values() for t in (f["tap"] if isinstance(f["tap"], list) else [f["tap"]])}
    layers = sorted(taps - {"logits", "probabilities"})
    if layers and how == "cached":
        raise Refused(f"strategy.leader_outputs=cached holds logits only, and followers read {layers[0]}; use live")
    try:
        return teachers.resolved(lab, how, bool(layers), None)
    except Refused as e:
        raise Refused(str(e).replace("teacher_outputs", "leader_outputs")) from None


def node(entry: dict[str, Any], models: list[dict[str, Any]], facts: Any, combine: str) -> dict[str, Any]:
    """The model node of a follower, which says all that is needed to build it.

    Args:
        models: the leaders' nodes.
        facts: of the data that leaders have learned.
    """
    tap = entry["tap"]
    taps = list(tap) if isinstance(tap, list) else [tap] * len(models)
    about = {"out_dim": facts.out_dim, **facts.form.plain(), "kind": facts.kind}
    net = {k: entry[k] for k in NET[entry["model"]]}
    leaders = [{"model": model, **about} for model in models]
    return {"family": "follower", "name": entry["model"], **net, "taps": taps, "combine": combine, "leaders": leaders}


def check_rows(name: str, mine: Any, target: Any) -> None:
    """Raises Refused: a follower's own rows are none that its leaders can read, who have learned the target's."""
    a, b = mine.form, target.form
    if a.kind != b.kind or a.shape[:1] not in (b.shape[:1], (1,) if len(b.shape) == 3 else b.shape[:1]):
        raise Refused(
            f"strategy.followers: data of {name} has rows of shape {list(a.shape)}, which its leaders cannot read: "
            f"they learn rows of shape {list(b.shape)}"
        )


def built(node: dict[str, Any], facts: Any) -> nn.Module:
    """What a node describes, to be looked at. Raises Refused: it cannot be built."""
    return models.build(node, out_dim=facts.out_dim, form=facts.form)


def bare(home: Lab) -> dict[str, Any]:
    """A run's model without its first weights."""
    return {**home.run.config["model"], "pretrained": False, "checkpoint": None}
