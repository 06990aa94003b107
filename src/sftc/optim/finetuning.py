"""Which weights move: all, the head, all but the first blocks, ever more, the deeper the slower; or adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sftc.errors import Refused, choose
from sftc.models import surgery
from sftc.optim import adapters
from sftc.optim.adapters import Adapters
from sftc.types import Inputs

Rates = Callable[[int], list[float]]  # number of blocks -> a multiple of the rate for each; 0: frozen for good
Awake = Callable[[int, int], int]  # epoch, number of blocks -> how many of them move, counted from the head


class Finetune:
    """What moves, over the blocks of a model (stem first, head last).

    Made by `finetune`; a model that a builder froze in part stays so under `full`.
    """

    def __init__(
        self, name: str, rates: Rates | None = None, awake: Awake | None = None, lora: Adapters | None = None
    ) -> None:
        self.name = name
        self._lora = lora
        self._rates = rates
        self._awake = awake or (lambda _epoch, count: count)

    def begin(self, model: nn.Module, inputs: Inputs | None = None, seed: int = 0) -> None:
        """Freeze what does not move in the first epoch, and put adapters in, whose first weights follow `seed`.

        Args:
            inputs: a few rows where the model is, which show what layers are called.

        Raises:
            Refused: the model has fewer blocks than asked for, or no layer for an adapter.
        """
        if self._lora is not None:
            self._lora.put(model, inputs, seed)
        self.epoch(model, 0)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of `model` or a copy of it, after `begin`, as a run keeps it: adapters folded in."""
        return model.state_dict() if self._lora is None else adapters.folded(model)

    def end(self, model: nn.Module) -> None:
        """The model alone, with what it has learned: adapters are folded in and gone."""
        if self._lora is not None:
            adapters.fold(model)

    def moving(self, model: nn.Module, inputs: Inputs | None = None) -> str:
        """How many weights of a fresh model will move, if not all: "1,290 weights". Raises Refused: as `begin`."""
        if self._lora is not None:
            layers, count = self._lora.size(model, inputs)
            heads = [model.get_submodule(path) for path in surgery.head_names(model)]
            count += sum(p.numel() for head in heads for p in head.parameters())
            return f"{count:,} weights, of the head and of adapters of rank {self._lora.r} on {layers} layers"
        count = sum(p.numel() for group in self.groups(model, 1.0, 0.0) for p in group["params"])
        return "" if count == sum(p.numel() for p in model.parameters()) else f"{count:,} weights"

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


def _lora(
    name: str, r: int = 8, alpha: float = 16, dropout: float = 0.0, targets: str | list[str] = "auto"
) -> Finetune:
    """Adapters of low rank beside frozen layers (Hu et al. 2021), and the head."""
    return Finetune(name, lora=Adapters(r, alpha, dropout, targets))


WAYS: dict[str, Callable[..., Finetune]] = {
    "full": _full,
    "head": _head,
    "first_n": _first_n,
    "gradual": _gradual,
    "layerwise": _layerwise,
    "lora": _lora,
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
