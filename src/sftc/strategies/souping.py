"""One model of averaged weights (Wortsman et al. 2022): a plain run at the end, as small and fast as one member."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sftc.errors import Refused
from sftc.fusion import soup as kitchen
from sftc.lab import Lab
from sftc.loop import Fitted
from sftc.strategies import weighing

if TYPE_CHECKING:
    from sftc.strategies.fusing import Voice

State = dict[str, Tensor]


def soup(lab: Lab, voices: list[Voice], rule: dict[str, Any]) -> None:
    """Average the members' weights, after a look at the way between them.

    Raises:
        Refused: other architectures, or a valley between two members that no average would survive.
    """
    homes = [home for voice in voices for home in voice.unit.homes]
    states = [home.run.weights() for home in homes]
    kitchen.average(states[:1])
    model = homes[0].restore()
    sign = 1 if lab.task.maximize else -1

    def evaluate(state: State) -> float:
        model.load_state_dict(state)
        if kitchen.needs_statistics(model):
            kitchen.reestimate(model, (lab.device.inputs(b.inputs) for b in lab.view("train", 0).epoch(0)))
        meter = lab.task.meter(full=False)
        lab.predict(model, "val", meter=meter)
        return sign * meter.compute()[lab.task.monitor]

    alone = [sign * home.run.result["val"][lab.task.monitor] for home in homes]
    order = sorted(range(len(homes)), key=lambda i: -alone[i])
    valleys = {}
    for a, b in itertools.pairwise(order):
        fall = float(kitchen.barrier(states[a], states[b], evaluate, points=3)["barrier"])  # type: ignore[arg-type]
        valleys[f"{voices[a].unit.name} - {voices[b].unit.name}"] = fall
        if rule["how"] == "uniform" and fall > rule["barrier"]:
            raise Refused(
                f"half way between {homes[a].run.path} and {homes[b].run.path} {lab.task.monitor} falls by {fall:.4f}, "
                f"more than fuse.barrier={rule['barrier']}: they did not start from the same weights; use fuse=mean"
            )
    if rule["how"] == "greedy":
        _, chosen, value = kitchen.greedy(states, alone, evaluate)
    else:
        chosen, value = list(range(len(states))), 0.0
    value = evaluate(kitchen.average([states[i] for i in chosen]))
    for pair, fall in valleys.items():
        lab.watch.say(f"barrier {pair}: {lab.task.monitor} falls by {fall:.4f} half way")
    lab.watch.say(
        f"soup of {len(chosen)} of {len(states)} members: {lab.task.monitor} {sign * value:.4f} on validation"
    )
    at = {"epoch": 0, "step": 0, "val": {lab.task.monitor: sign * value}}
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    fitted = Fitted(model, state, at, dict(at), 0.0, "fused")
    names = [voices[i].unit.name for i in chosen]
    more = {"soup": {"how": rule["how"], "members": names, "barriers": valleys}}
    lab.keep(fitted, lambda found: {**more, "team": _rows(lab, voices, found)})


def _rows(lab: Lab, voices: list[Voice], found: Any) -> list[dict[str, Any]]:
    rows = [weighing.row(lab, voice) for voice in voices]
    size = {"params": voices[0].params, "ms_per_row": voices[0].ms}
    return [*rows, {"name": "soup", **size, **{s: metrics for s, (_, metrics) in found.items()}}]
