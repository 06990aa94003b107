"""Ways to make the members of an ensemble: each is an ordinary run, and a replay makes the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftc.errors import Refused
from sftc.fusion import boosting
from sftc.fusion.folds import assign
from sftc.lab import Lab
from sftc.objective import mix
from sftc.strategies import lockstep

Groups = dict[str, Any]


class Unit:
    """One voice of a fusion: a member, or the folds of one model, which speak as their mean.

    Args:
        weight: what boosting gives it.
        folds: for each home, the source rows it may be asked about because it did not learn from them; None: not folds.
        out_of_bag: source rows of train that were not drawn for it; None: it is no bag.
    """

    def __init__(
        self,
        name: str,
        homes: Sequence[Lab],
        weight: float | None = None,
        folds: Sequence[Tensor] | None = None,
        out_of_bag: Tensor | None = None,
    ) -> None:
        self.name = name
        self.homes = list(homes)
        self.weight = weight
        self.folds = folds
        self.left_out: Tensor | None = None  # what its folds say of the rows they did not learn from, once asked
        self.out_of_bag = out_of_bag


def seeds(lab: Lab, node: Groups) -> list[Unit]:
    """Fresh first weights each (Lakshminarayanan et al. 2017)."""
    return _trained(lab, node, [_changes(lab, node, i) for i in range(node["n"])])


def models(lab: Lab, node: Groups) -> list[Unit]:
    """Another architecture each."""
    if len(node["models"]) < 2:
        raise Refused("strategy.members=models needs two or more: strategy.models=[resnet18,vgg16]")
    nodes = node["models"]
    return _trained(lab, node, [{"model": m} | _changes(lab, node, i) for i, m in enumerate(nodes)])


def bagging(lab: Lab, node: Groups) -> list[Unit]:
    """A bootstrap sample of the rows each (Breiman 1996), as counts: a row drawn twice weighs twice.

    Where rows go in groups, groups are drawn: so the rows out of a bag are of groups that it does not know.
    """
    rows = lab.data.splits["train"].rows
    group = _groups(lab, "bags")
    unit = rows if group is None else group
    names, unit = unit.unique(return_inverse=True)
    counts = []
    for i in range(node["n"]):
        generator = np.random.default_rng(mix(lab.data_seed, 11, i))
        draw = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))
        weight = torch.zeros(int(rows.max()) + 1)
        weight[rows] = torch.from_numpy(draw).float()[unit]
        counts.append(weight)
    units = _trained(lab, node, [_changes(lab, node, i) for i in range(node["n"])], counts)
    for unit, weight in zip(units, counts, strict=True):
        unit.out_of_bag = rows[weight[rows] == 0]
    return units


def _trained(
    lab: Lab, node: Groups, changes: list[Groups], weights: Sequence[Tensor | None] | None = None
) -> list[Unit]:
    """The members, one after another, or in lockstep on one pass over the data: with the same result."""
    weights = [None] * len(changes) if weights is None else weights
    homes = [lab.fork(f"member{i}", **change) for i, change in enumerate(changes)]
    if not all(home.run.finished for home in homes):
        way = lockstep.way(lab, node["lockstep"], homes, weights)
        if way is False:
            for home, weight in zip(homes, weights, strict=True):
                _train(home, weight)
        else:
            for home, fitted in zip(homes, lab.fit(*lockstep.learners(homes, weights, way)), strict=True):
                home.keep(fitted)
    return [Unit(home.run.path.name, [home]) for home in homes]


def _train(home: Lab, weight: Tensor | None = None, **how: Any) -> None:
    if not home.run.finished:
        (fitted,) = home.fit(home.learner(home.model(), row_weight=weight), **how)
        home.keep(fitted)


def snapshot(lab: Lab, node: Groups) -> list[Unit]:
    """One training whose rate falls to zero and starts again; a member at the end of each cycle (Huang et al. 2017)."""
    epochs = max(1, lab.settings.budget.epochs // node["n"])
    units: list[Unit] = []
    for i in range(node["n"]):
        change: Groups = _changes(lab, node, i) | {"seed": lab.seed}
        change.setdefault("epochs", epochs)
        change.setdefault("schedule", {**lab.run.config["schedule"], "name": "cosine"})
        if units:
            last = units[-1].homes[0].run.path.resolve()
            change["model"] = {**lab.run.config["model"], "checkpoint": f"{last}/last.safetensors"}
        home = lab.fork(f"member{i}", **change)
        _train(home)
        units.append(Unit(home.run.path.name, [home]))
    return units


def folds(lab: Lab, node: Groups) -> list[Unit]:
    """Each row is left out by one fold, whose model then predicts it: nothing a rule is fitted on was learned from."""
    split = lab.data.splits["train"]
    rows = split.rows
    number = assign(lab.task, split.target[rows], node["n"], lab.split_seed, _groups(lab, "folds"))
    if int(number.max()) + 1 < node["n"]:
        raise Refused(
            f"strategy.n={node['n']} folds of {int(number.max()) + 1} groups: one would be empty; make it less"
        )
    parts = [rows[number == k] for k in range(node["n"])]
    units = []
    for m, model in enumerate(node["models"] or [None]):
        homes = []
        for k, held in enumerate(parts):
            change: Groups = ({} if model is None else {"model": model}) | _changes(lab, node, m)
            change["rows"] = rows[~torch.isin(rows, held)]
            home = lab.fork(f"model{m}-fold{k}", **change)
            _train(home, val_rows=held)
            homes.append(home)
        units.append(Unit(f"model{m}", homes, folds=parts))
    return units


def _groups(lab: Lab, what: str) -> Tensor | None:
    """[n] the group of each training row, whose rows stay in one of `what`; None where rows go alone."""
    split = lab.data.splits["train"]
    apart = getattr(split.table, "apart", None)
    if apart is None:
        return None
    if apart.groups is None:
        lab.watch.say(
            f"{what} are drawn from all training rows: of those they leave out some lie before what they learned from, "
            "in the order of data.order_by, so scores on them flatter; test does not"
        )
        return None
    return apart.groups[split.rows]


def boosted(lab: Lab, node: Groups) -> list[Unit]:
    """Each member learns most from what the ones before it missed: SAMME for classes, AdaBoost.R2 for values."""
    task, split = lab.task, lab.data.splits["train"]
    if "labels" in task.offers:
        raise Refused("strategy.members=boosting is for classes or values; these data hold several labels per row")
    rows, target = split.rows, split.target[split.rows]
    if (target.ndim > 1 or lab.facts.kind == "pixels") and "classes" in task.offers:
        raise Refused("strategy.members=boosting weighs rows by their one answer; rows here have several: use bagging")
    known = task.labelled(target)
    weight = known.double() / known.sum()
    units: list[Unit] = []
    for i in range(node["n"]):
        home = lab.fork(f"member{i}", **_changes(lab, node, i))
        spread = torch.zeros(int(rows.max()) + 1)
        spread[rows] = (weight * known.sum()).float()
        _train(home, spread)
        scores = lab.predict(home.restore(), "train").scores
        if "classes" in task.offers:
            done = boosting.samme(
                weight, task.miss(scores, target).double().masked_fill(~known, torch.nan), task.out_dim
            )
        else:
            done = boosting.r2(weight, (scores - target).abs().mean(1), node["error"])
        if done.stop == "chance" and units:
            lab.watch.say(f"boosting ends: member {i} is no better than chance on the rows that count now")
            break
        weight = done.row_weight
        units.append(Unit(home.run.path.name, [home], weight=done.weight or 1.0))
        if done.stop:
            break
    return units


def _changes(lab: Lab, node: Groups, i: int) -> Groups:
    """The config of member `i`: its own first weights, the team's order and augmentation, what is set for it alone."""
    own = node["each"][i] if i < len(node["each"]) else {}
    return {"seed": lab.seed + i, "data_seed": lab.data_seed, **own}


MAKERS: dict[str, Callable[[Lab, Groups], list[Unit]]] = {
    "seeds": seeds,
    "models": models,
    "bagging": bagging,
    "boosting": boosted,
    "snapshot": snapshot,
    "folds": folds,
}
