"""What a run keeps once it is trained: weights, predictions, result; and all of that read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from sftc import loop
from sftc.loop import Fitted
from sftc.positions import Positions, Said
from sftc.store import hash_tensors
from sftc.types import Metrics

if TYPE_CHECKING:
    from sftc.lab.lab import Lab

Found = dict[str, tuple[Said, Metrics]]  # split -> what the kept model says there
More = Callable[[Found], dict[str, Any]]


def keep(lab: Lab, fitted: Fitted, more: More) -> None:
    run, data, task = lab.run, lab.data, lab.task
    model, state = fitted.model, loop.host_state(fitted.model)
    mark = {"model": hash_tensors(state), "data": data.fingerprint}
    run.write_weights("model", state, {"which": "best on validation"})
    run.write_weights("last", fitted.last_state, {"which": "last step"})
    classes: dict[str, Any] = {}
    found: Found = {}
    for split in data.splits:
        if split != "train":
            predictions, metrics, classes[split] = lab.measure(model, split)
            found[split] = predictions, metrics
            if isinstance(predictions, Positions):
                lab.watch.say(f"predictions of {split}: {predictions}")
            run.write_predictions(split, predictions, mark | {"split": data.splits[split].fingerprint()})
    last = dict(fitted.last)
    if "test" in found:
        model.load_state_dict(fitted.last_state)
        last["test"] = lab.measure(model, "test", keep=False)[1]
        model.load_state_dict(state)
    run.add_skipped(data.skipped)
    run.write_result(
        {
            "monitor": task.monitor,
            "maximize": task.maximize,
            **{split: metrics for split, (_, metrics) in found.items()},
            "best": fitted.best,
            "last": last,
            "params": sum(p.numel() for p in model.parameters()),
            "ms_per_row": lab.milliseconds(model),
            "model": getattr(model, "facts", {}),
            "seconds": fitted.seconds,
            "ended": fitted.ended,
            "fingerprints": mark,
            "per_class": classes,
            **more(found),
        }
    )
    lab.card()
    run.mark("finished", value=found["val"][1].get(task.monitor))
    run.checkpoints.drop()


def kept(lab: Lab) -> Fitted:
    result = lab.run.result
    last = {k: v for k, v in result["last"].items() if k != "test"}
    model, last_state = lab.restore(), lab.run.weights("last")
    return Fitted(model, last_state, result["best"], last, result["seconds"], result["ended"])


def untrained(lab: Lab, model: nn.Module) -> Fitted:
    model = lab.device.place(model).eval()
    meter = lab.task.meter(full=False)
    lab.predict(model, "val", meter=meter, keep=False)
    at = {"epoch": 0, "step": 0, "val": meter.compute()}
    return Fitted(model, loop.host_state(model), at, dict(at), 0.0, "untrained")
