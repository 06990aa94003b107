"""Which weights move: all, the head, all but the first blocks, ever more, or the deeper the slower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sftc.errors import Refused, choose
from sftc.models import surgery

Rates = Callable[[int], list[float]]  # number of blocks -> a multiple of the rate for each; 0: frozen for good
Awake = Callable[[int, int], int]  # epoch, number of blocks -> how many of them move, counted from the head


class Finetune:
    """What moves, over the blocks of a model (stem first, head last).

    Made by `finetune`; a model that a builder froze in part stays so under `full`.
    """

    def __init__(self, name: str, rates: Rates | None = None, awake: Awake | None = None) -> None:
        self.name = name
        self._rates = rates
        self._awake = awake or (lambda _epoch, count: count)

    def begin(self, model: nn.Module) -> None:
        """Freeze what does not move in the first epoch.

        Raises:
            Refused: the model has fewer blocks than asked for.
        """
        self.epoch(model, 0)

    def epoch(self, model: nn.Module, epoch: int) -> bool:
        """Freeze and unfreeze for this epoch, before `surgery.train_mode`; tells whether anything changed."""
        if self._rates is None:
            return False
        parts = surgery.blocks(model)
        first = len(parts) - self._awake(epoch, len(parts))
        params, changed = dict(model.named_parameters()), False
        for i, ((_, names), rate) in enumerate(zip(parts, self._rates(len(parts)), strict=True)):
            for name in names:
                moves = rate > 0 and i >= first
                changed |= params[name].requires_grad != moves
                params[name].requires_grad_(moves)
        return changed

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of everything that will ever move, each with `lr_scale` times the rate.

        Norms, biases and what timm's models name themselves are not decayed.
        """
        if self._rates is None:
            return plain_groups(model, lr, weight_decay)
        params, spared = dict(model.named_parameters()), _spared(model)
        parts = surgery.blocks(model)
        found = [
            (params[name], rate, 0.0 if name in spared else weight_decay)
            for (_, names), rate in zip(parts, self._rates(len(parts)), strict=True)
            for name in names
            if rate > 0
        ]
        return _gather(found, lr)


def plain_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of what requires gradients in `module`, all at one rate: projectors, whole models."""
    spared = _spared(module)
    moving = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    return _gather([(p, 1.0, 0.0 if n in spared else weight_decay) for n, p in moving], lr)


def finetune(spec: Mapping[str, Any]) -> Finetune:
    """The way of fine-tuning a `finetune` node describes.

    Raises:
        Refused: no such way, or a value out of range.
    """
    name = choose("finetune", spec["name"], WAYS)
    return WAYS[name](name, **{k: v for k, v in spec.items() if k != "name"})


def _full(name: str) -> Finetune:
    return Finetune(name)


def _head(name: str) -> Finetune:
    return Finetune(name, lambda count: [0.0] * (count - 1) + [1.0])


def _first_n(name: str, n: int, keep_lr: float = 0.0) -> Finetune:
    """The first `n` blocks at `keep_lr` times the rate; 0 freezes them."""
    if keep_lr < 0:
        raise Refused(f"finetune.keep_lr={keep_lr} must be 0 (frozen) or above")

    def rates(count: int) -> list[float]:
        surgery.in_range(n, count, "finetune.n")
        return [float(keep_lr)] * n + [1.0] * (count - n)

    return Finetune(name, rates)


def _gradual(name: str, start: int = 1, every: float = 1) -> Finetune:
    """Gradual unfreezing (Howard & Ruder 2018): `start` blocks from the head, one more every so often."""
    if start < 1 or every <= 0:
        raise Refused(f"finetune.start={start} must be at least 1 and finetune.every={every} above 0")
    return Finetune(
        name, lambda count: [1.0] * count, lambda epoch, count: min(count, start + int(epoch / every + 1e-9))
    )


def _layerwise(name: str, decay: float = 0.75) -> Finetune:
    """Each block at `decay` times the rate of the one after it (Clark et al. 2020, as in BEiT and timm)."""
    if not 0 < decay <= 1:
        raise Refused(f"finetune.decay={decay} must lie in (0, 1]; 1 is finetune=full")
    return Finetune(name, lambda count: [decay ** (count - 1 - i) for i in range(count)])


WAYS: dict[str, Callable[..., Finetune]] = {
    "full": _full,
    "head": _head,
    "first_n": _first_n,
    "gradual": _gradual,
    "layerwise": _layerwise,
}


def _spared(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay leaves alone."""
    names = {n for n, p in model.named_parameters() if p.ndim <= 1}
    for path, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            found: Any = listed()
            names |= {f"{path}.{n}" if path else n for n in found}
    return names


def _gather(found: Iterable[tuple[Tensor, float, float]], lr: float) -> list[dict[str, Any]]:
    """One group for each pair of rate and decay, in order of appearance."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for param, rate, decay in found:
        fresh = {"params": [], "lr": lr * rate, "lr_scale": rate, "weight_decay": decay}
        groups.setdefault((rate, decay), fresh)["params"].append(param)
    return list(groups.values())
