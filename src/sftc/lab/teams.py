"""A fused run: members that are runs of their own, and a rule. It opens like any other run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sftc import fusion
from sftc.data.rows import digest
from sftc.errors import Refused
from sftc.models.fused import Fused, gathered
from sftc.models.surgery import Tapped
from sftc.store import Run, hash_tensors
from sftc.types import Metrics

if TYPE_CHECKING:
    from sftc.lab.lab import Lab

DEEPEST = 4  # fused of fused of fused of fused: of more nobody can say what they are made of
LARGEST = 1_000  # models below one fused run, however they are nested


class Outcome(Protocol):
    """A fitted rule and what it gave."""

    rule: str
    made_with: dict[str, Any]  # options the rule is made with again; what it has learnt is in its state
    taps: list[list[str]]
    pooling: fusion.Pooling
    temperature: float
    found: dict[str, Any]
    metrics: dict[str, Metrics]


def keep(
    lab: Lab,
    outcome: Outcome,
    members: Mapping[str, list[Run]],
    marks: Mapping[str, Mapping[str, str]],
    seconds: float,
    more: dict[str, Any],
) -> None:
    """Write rule, predictions and result: after this the run is finished.

    Args:
        members: name of a voice -> its runs; several speak as their mean.
        marks: of the members' predictions: which data and rows they are about.
    """
    run, task = lab.run, lab.task
    hashes: dict[str, list[str]] = {}
    for name, runs in members.items():
        hashes[name] = [member.result["fingerprints"]["model"] for member in runs]
        for i, member in enumerate(runs):
            if member.path != run.member(_name(name, i, len(runs))):
                run.refer(_name(name, i, len(runs)), member.path)
    state = outcome.pooling.state()
    about = {"rule": outcome.rule, "options": outcome.made_with, "temperature": outcome.temperature}
    about |= {"taps": outcome.taps, "members": hashes}
    run.write_fusion(about, state)
    mark = {"model": digest(about, *state.values()), "data": marks["val"].get("data", "")}
    for split, predictions in outcome.found.items():
        run.write_predictions(split, predictions, {**mark, "split": marks[split].get("split", "")})
    at = {"epoch": 0, "step": 0, "val": outcome.metrics["val"]}
    last = {**at, "test": outcome.metrics["test"]} if "test" in outcome.metrics else at
    result = {"monitor": task.monitor, "maximize": task.maximize, **outcome.metrics, "best": at, "last": last}
    result |= {"seconds": seconds, "ended": "fused", "fingerprints": mark, "per_class": {}}
    run.write_result({**result, **more})
    lab.card()
    run.mark("finished", value=outcome.metrics["val"].get(task.monitor))
    run.checkpoints.drop()  # of members that were trained in lockstep


def restored(lab: Lab) -> Fused:
    """The members of a fused run, each checked against the hash it was fused with, under its rule."""
    expect_flat(lab.run)
    about, state = lab.run.fusion()
    pooling = fusion.make(about["rule"], lab.task, **about["options"])
    pooling.load(state)
    if len(about["taps"]) != len(about["members"]):
        raise Refused(f"{lab.run.path / 'fusion.json'} lists taps of {len(about['taps'])} members, and others")
    voices, taps = [], []
    for (name, hashes), paths in zip(about["members"].items(), about["taps"], strict=True):
        lives = [lab.teacher(_home(lab, _name(name, i, len(hashes)), each)) for i, each in enumerate(hashes)]
        models = [live.model for live in lives]
        voices.append(models[0] if len(models) == 1 else Fused(models, fusion.make("mean", lab.task), lab.task))
        taps.append([lives[0].inner + path for path in paths])
    return Fused(voices, pooling, lab.task, about["temperature"], taps)


def expect_flat(run: Run, around: int = 0) -> None:
    """Fused runs may be fused again, but not endlessly: nothing is built before it is seen to have an end.

    Args:
        around: how many fused runs will be around this one.

    Raises:
        Refused: too deep, too many models below, or a run that is, over others, a member of itself.
    """
    depth, models = _below(run, {}, ())
    if depth + around > DEEPEST:
        raise Refused(
            f"{run.path} is fused of fused runs, {depth} deep ({DEEPEST - around} is the most); fuse its members"
        )
    if models > LARGEST:
        raise Refused(f"{run.path} is made of {models:,} models over its members; {LARGEST:,} is the most")


def _below(run: Run, known: dict[Path, tuple[int, int]], above: tuple[Path, ...]) -> tuple[int, int]:
    """How many fused runs deep a run is, and how many models it is made of."""
    if not run.fused:
        return 0, 1
    here = run.path.resolve()
    if here in above:
        raise Refused(f"{run.path} is a member of itself, over {len(above) - above.index(here)} fused runs; fuse again")
    if here not in known:
        if len(above) > DEEPEST:
            raise Refused(f"{above[0]} is fused of fused runs more than {DEEPEST} deep; fuse their members")
        inner = []
        for name, hashes in run.fusion()[0]["members"].items():
            for i in range(len(hashes)):
                own = _name(name, i, len(hashes))
                inner.append(_below(Run(run.reference(own) or run.member(own)), known, (*above, here)))
        known[here] = 1 + max((d for d, _ in inner), default=0), sum(n for _, n in inner)
    return known[here]


def features(lab: Lab, homes: Sequence[Lab], taps: Sequence[Sequence[str]], split: str) -> list[Tensor]:
    """What the tapped layers give for every row of a split: [N, D] for each tap, on the CPU."""
    out: list[Tensor] = []
    for home, paths in zip(homes, taps, strict=True):
        if not paths:
            continue
        live = lab.teacher(home)
        tapped = Tapped(live.model, [live.inner + path for path in paths])
        parts: list[list[Tensor]] = []
        for batch in lab.source(split).epoch(0):
            with torch.no_grad(), lab.device.autocast():
                found = tapped(lab.device.inputs(batch.inputs)).features
            parts.append([gathered(found[live.inner + path]).cpu() for path in paths])
        tapped.close()
        out += [torch.cat(each) for each in zip(*parts, strict=True)]
    return out


def _home(lab: Lab, name: str, known: str) -> Lab:
    path = lab.run.reference(name) or lab.run.member(name)
    home = lab.open(str(path))
    now = home.run.result["fingerprints"]["model"] if home.run.fused else hash_tensors(home.run.weights())
    if now != known:
        raise Refused(f"{path} is no longer the member {name} that {lab.run.path} was fused from; fuse again")
    return home


def _name(name: str, i: int, count: int) -> str:
    return name if count == 1 else f"{name}-fold{i}"
