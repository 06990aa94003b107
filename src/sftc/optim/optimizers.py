"""Update rules by name: torch's own four, and everything timm knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from sftc.errors import Refused, nearest

# By hand, because importing timm costs seconds that the commonest runs need not pay.
TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
# Keys that only some rules have; null leaves the rule's own default.
TUNED = ("momentum", "nesterov", "betas", "eps")


def optimizer(spec: Mapping[str, Any], groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of an `optim` node over parameter groups that carry their own lr and weight_decay.

    Raises:
        Refused: a name nobody knows, a key the rule does not have, values it does not take.
    """
    name = str(spec["name"]).lower()
    asked = {k: spec[k] for k in TUNED if spec.get(k) is not None} | dict(spec.get("kwargs") or {})
    taken = _takes(name)
    for key in asked:
        if key not in taken:
            has = [k for k in taken if k in TUNED]
            way = f"it has {', '.join(has)}" if has else "leave it null"
            node = "optim.kwargs" if key in (spec.get("kwargs") or {}) else "optim"
            raise Refused(f"{node}.{key}={asked[key]} has no meaning for {name} ({way})")
    if asked.get("nesterov") and not asked.get("momentum"):
        raise Refused("optim.nesterov=true needs momentum; set optim.momentum=0.9 or optim.nesterov=false")
    if "betas" in asked:
        asked["betas"] = _betas(asked["betas"], len(taken["betas"].default))
    common = {"lr": spec["lr"], "weight_decay": spec.get("weight_decay") or 0.0}
    # Not sgd: torch's fused one fails when a weight moves for the first time later than others (gradual unfreezing).
    if name in ("adam", "adamw") and "fused" in taken and not asked.keys() & {"fused", "foreach", "differentiable"}:
        common["fused"] = True  # one pass over each weight: AdamW on a ResNet-18 takes 9 ms instead of 70 on a CPU
    return _construct(name, list(groups), common | asked)


def _construct(name: str, groups: list[dict[str, Any]], keys: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        if name in TORCH:
            return TORCH[name](groups, **keys)
        # timm fills in a momentum of its own unless told; what is asked for arrives through the keywords.
        return _timm().create_optimizer_v2(groups, opt=name, **keys)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        raise Refused(f"optim.name={name}: {str(error).strip().splitlines()[0]}") from error


def _takes(name: str) -> Mapping[str, Any]:
    """The constructor's keywords, also those a subclass hands on by **kwargs."""
    kind: Any = TORCH.get(name) or _from_timm(name)
    taken: dict[str, Any] = {}
    for cls in kind.__mro__ if isinstance(kind, type) else (kind,):
        if cls is torch.optim.Optimizer:
            break
        own = signature(cls).parameters
        taken = {**own, **taken}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return {k: v for k, v in taken.items() if k not in ("params", "lr", "weight_decay")}


def _from_timm(name: str) -> Any:
    rules = _timm()
    ahead, _, rule = name.rpartition("_")
    known = [str(one) for one in rules.list_optimizers()]
    if ahead not in ("", "lookahead") or rule not in known:
        raise Refused(f"optim.name={name} is in neither torch nor timm{nearest(rule, known)}")
    if rules.get_optimizer_info(rule).second_order:
        raise Refused(f"optim.name={name} needs second derivatives, which are not computed here")
    try:
        return rules.get_optimizer_class(rule, bind_defaults=False)
    except (ImportError, AssertionError) as error:
        raise Refused(f"optim.name={name} is not available here: {error}") from error


def _timm() -> Any:
    import timm.optim

    return timm.optim  # Any: it does not declare what it exports


def _betas(values: Any, count: int) -> tuple[float, ...]:
    fine = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not fine or not all(isinstance(b, int | float) and math.isfinite(b) and 0 <= b < 1 for b in values):
        raise Refused(f"optim.betas={values} must be {count} numbers in [0, 1)")
    return tuple(float(b) for b in values)
