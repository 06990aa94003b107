"""Whether a stored state is one that this very fit could have written.

It may come from a folder that somebody else made. Most of what does not fit fails by itself when it is loaded; here is
what would not: torch's fused optimizers write as many numbers as the weight has, whatever their own tensors hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

FUSED = ("step", "exp_avg", "exp_avg_sq")  # what Adam and AdamW keep of each weight
ENDS = (None, "budget", "target", "patience")


def check(fit: Any, state: Mapping[str, Any]) -> None:
    """Hold `state` against a `Fit` that it is to be loaded into.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not of this fit.
    """
    step, epoch, ended = state["step"], state["epoch"], state["ended"]
    _true(_count(step) and _count(epoch) and ended in ENDS, "step and epoch")
    _true(epoch * fit.per_epoch <= step <= (epoch + 1) * fit.per_epoch or (ended and epoch > 0), "step and epoch")
    _true(_number(state["seconds"]) and _metrics(state["sums"]) and state["sums"].get("steps", 1) > 0, "sums")
    _true(state["micro"] is None or (_count(state["micro"]) and state["micro"] > 0), "micro")
    _true(all(_count(s) for s in state["avoid"]), "avoid")
    for trainee, saved in zip(fit.trainees, state["trainees"], strict=True):
        _trainee(trainee, saved, step, bool(ended))


def _trainee(trainee: Any, saved: Mapping[str, Any], step: int, ended: bool) -> None:
    best = saved["best"]
    _true(_metrics(saved["last"]) and _count(saved["stale"]), "last")
    rest = saved["ended"]
    _true(rest is None or (rest["why"] in ENDS and _count(rest["epoch"]) and _count(rest["step"])), "rest")
    if best is None:
        _true(not ended and not saved["best_state"], "best")
    else:
        _true(_count(best["epoch"]) and _count(best["step"]) and _metrics(best["val"]), "best")
        _true(len(best["rank"]) == 2 and all(isinstance(r, float) for r in best["rank"]), "best")
        _same_shapes(trainee.scored, saved["best_state"])
    shape = saved["schedule"]["shape"]
    _true(saved["schedule"]["updates"] == step, "schedule")
    _true(alike(shape, trainee.schedule.shape.state_dict()), "schedule")
    _true(0 <= shape.get("last_epoch", step) <= step <= shape.get("last_epoch", step) + 1, "schedule")
    if not ended:
        _optimizer(trainee.optimizer, saved["optimizer"])


def _optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Tensors of the weights' own shape and layout, or single numbers; settings as the config makes them."""
    fresh = optimizer.state_dict()["param_groups"]
    for mine, theirs in zip(fresh, saved["param_groups"], strict=True):
        _true(mine["params"] == theirs["params"] and mine.keys() <= theirs.keys(), "optimizer")
        for key, value in theirs.items():
            known = mine.get(key, 0.0)
            switch = isinstance(known, bool | str | None)
            _true(value == known if switch else key == "params" or alike(value, known), f"optimizer's {key}")
    # A rule that keeps smaller tensors (timm has some) does its arithmetic in torch, which looks at shapes itself.
    strict = any(group.get("fused") for group in fresh)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, held in saved["state"].items():
        weight = params[number]
        _true(not strict or all(isinstance(held.get(key), Tensor) for key in FUSED), "optimizer's state")
        for key, value in held.items():
            if not isinstance(value, Tensor):
                continue
            _true(value.layout is torch.strided and not value.is_complex(), f"optimizer's {key}")
            _true(not strict or value.shape == weight.shape or value.ndim == 0, f"optimizer's {key}")
            if value.shape == weight.shape:  # in its layout, too: an expanded tensor has less memory than it shows
                held[key] = torch.empty_like(weight, dtype=value.dtype, device="cpu").copy_(value)


def _same_shapes(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    fits = own.keys() == saved.keys() and all(own[k].shape == v.shape for k, v in saved.items())
    _true(fits, "best weights")


def alike(one: Any, other: Any) -> bool:
    """Whether two values have the same keys, lengths and types, text and switches being equal; numbers may differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, bool):
        return isinstance(other, bool)
    if _number(one):
        return _number(other)
    return one == other


def _metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and _number(v) for k, v in value.items())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _number(value) and isinstance(value, int) and not math.isnan(value) and value >= 0


def _true(fine: Any, what: str) -> None:
    if not fine:
        raise ValueError(f"its {what} cannot be of this run")
