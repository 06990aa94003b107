"""How the members of a team are trained: one after another, in lockstep, or in lockstep as one stacked model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sftc.errors import Refused
from sftc.lab import Lab
from sftc.lab.timing import seconds_per_step
from sftc.models.stacked import WAY_OUT, Stacked
from sftc.objective import Learner

Way = bool | str  # False: one after another; True: in lockstep; "vmap": stacked; as a setting also "auto"
ALIKE = ("model", "finetune", "semi")  # groups that members of one stack have in common
ROUNDS = 3  # of timing all ways in turn; the fastest of each counts, so that a busy moment does not
TRIED = 4  # rows of a trial forward


def learners(homes: Sequence[Lab], weights: Sequence[Tensor | None], way: Way) -> list[Learner]:
    """Fresh members as learners of one fit."""
    return [
        home.learner(home.model(), row_weight=weight, name=f"member{i}", stacked=way == "vmap")
        for i, (home, weight) in enumerate(zip(homes, weights, strict=True))
    ]


def way(lab: Lab, asked: Way, homes: Sequence[Lab], weights: Sequence[Tensor | None]) -> Way:
    """The way that is asked for; of `auto` the fastest, written to config.yaml, so that no replay times again.

    Raises:
        Refused: members cannot be stacked, and that is what is asked for.
    """
    if asked == "vmap":
        _check(lab, homes)
    if asked != "auto":
        return asked
    ways: list[Way] = [False, True, "vmap"]
    try:
        _check(lab, homes)
    except Refused as why:
        lab.watch.say(f"strategy.lockstep=auto leaves one way out: {why}")
        ways.remove("vmap")
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for each in ways:
            found[each] = min(found[each], _seconds(lab, each, homes, weights))
    best = min(found, key=lambda each: found[each])
    times = ", ".join(f"{_word(each)} {1000 * seconds:.3g}" for each, seconds in found.items())
    _note(lab, best, f"strategy.lockstep={_word(best)}: the fastest of ms per step of the team, {times}")
    return best


def _seconds(lab: Lab, way: Way, homes: Sequence[Lab], weights: Sequence[Tensor | None]) -> float:
    """Of one step of all members."""
    made = learners(homes, weights, way)
    return sum(seconds_per_step(lab, [x]) for x in made) if way is False else seconds_per_step(lab, made)


def _check(lab: Lab, homes: Sequence[Lab]) -> None:
    """Raises Refused: the members cannot be run as one model."""
    for i, home in enumerate(homes):
        for group in ALIKE:
            if home.run.config[group] != homes[0].run.config[group]:
                raise Refused(f"lockstep=vmap: member {i} has another {group} than member 0; {WAY_OUT}")
    if homes[0].run.config["finetune"]["name"] == "lora":
        raise Refused(f"lockstep=vmap cannot stack adapters (finetune=lora); {WAY_OUT}")
    models = [lab.device.place(home.model()) for home in homes]
    batch = next(iter(lab.source("train", train=True).epoch(0))).map(lambda t: t[:TRIED])
    Stacked(models).check(lab.device.inputs(batch.inputs))


def _note(lab: Lab, best: Way, line: str) -> None:
    config, about = lab.run.config, lab.run.environment
    lab.run.write_json("environment.json", about | {"notes": [*about["notes"], line]})
    lab.run.write_config(config | {"strategy": {**config["strategy"], "lockstep": best}})
    lab.watch.say(line)


def _word(way: Way) -> str:
    return str(way).lower()
