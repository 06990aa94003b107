"""Low-rank adapters (LoRA, Hu et al. 2021), by peft: beside a model's dense layers for the time of a fit.

At its end they are folded into the weights, so a run holds an ordinary model: whoever evaluates, teaches with, fuses or
exports it needs neither peft nor this file. Only checkpoints hold adapters as such.
"""

from __future__ import annotations

import fnmatch
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused, nearest
from sftc.models import surgery
from sftc.types import Inputs

NAME = "default"  # peft's, of the only adapter there is
# torch's own attention reads the weights of these layers without calling them: an adapter would say nothing.
BYPASSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Adapters:
    """Which layers get adapters, and of what rank.

    Args:
        r: rank.
        alpha: what adapters say is scaled by alpha / r.
        dropout: of what adapters read.
        targets: auto (every dense layer below the head that is large enough), or names of layers: the end of a path, or
            a pattern with `*` for it.

    Raises:
        Refused: a value out of range, or peft is not there.
    """

    def __init__(self, r: int, alpha: float, dropout: float, targets: str | Sequence[str]) -> None:
        if r < 1 or alpha <= 0:
            raise Refused(f"finetune.r={r} must be at least 1 and finetune.alpha={alpha:g} above 0")
        if not 0 <= dropout < 1:
            raise Refused(f"finetune.dropout={dropout:g} must lie in [0, 1)")
        if targets != "auto" and not (
            isinstance(targets, list) and targets and all(isinstance(t, str) and t for t in targets)
        ):
            raise Refused(f"finetune.targets={targets} is neither auto nor a list of names such as [query,value]")
        self.r, self.alpha, self.dropout, self.targets = r, alpha, dropout, targets
        _library()

    def paths(self, model: nn.Module, inputs: Inputs | None = None) -> list[str]:
        """Of the layers that get an adapter.

        Args:
            inputs: a few rows; layers that a forward does not call, reading their weights itself, are no layers then.

        Raises:
            Refused: there are none, or one that is named cannot have an adapter of this rank.
        """
        layers, silent = _layers(model), set()
        if inputs is not None:
            silent = layers.keys() - _called(model, inputs, layers)
            layers = {path: layer for path, layer in layers.items() if path not in silent}
        if self.targets == "auto":
            dense = [path for path, m in layers.items() if not isinstance(m, nn.Conv2d)]
            if not dense:
                way = "name convolutions by finetune.targets, or " if layers else ""
                raise Refused(f"finetune=lora: the model has no dense layer but its head; {way}use finetune=full")
            found = [path for path in dense if _side(layers[path]) >= self.r]
            if not found:
                most = max(_side(layers[path]) for path in dense)
                raise Refused(f"finetune.r={self.r} is more than any dense layer can have ({most}); lower it")
            return found
        found = []
        for target in self.targets:
            matching = [path for path in layers if _meant(path, target)]
            if not matching:
                raise Refused(f"finetune.targets: {_absent(target, layers, silent, model)}")
            found += matching
        for path in found:
            if _side(layers[path]) < self.r:
                raise Refused(f"finetune.r={self.r} is more than the {_side(layers[path])} of {path}; lower it")
        return [path for path in layers if path in found]

    def put(self, model: nn.Module, inputs: Inputs | None = None, seed: int = 0) -> None:
        """Freeze `model` but its head, and give it adapters that say nothing yet; their first weights follow `seed`.

        Raises:
            Refused: as `paths`, or peft cannot do it.
        """
        if any(True for _ in _adapted(model)):  # learners may share modules
            return
        paths = self.paths(model, inputs)
        moving = [p for head in surgery.head_names(model) for p in model.get_submodule(head).parameters()]
        moving = [p for p in moving if p.requires_grad]
        peft = _library()
        # An expression made of whole paths: peft takes a name in a list for the end of any path.
        which = "|".join(map(re.escape, paths))
        asked = peft.LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=which)
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.default_generator.manual_seed(seed)
                peft.inject_adapter_in_model(asked, model, NAME)
        except (ValueError, TypeError, NotImplementedError) as e:
            raise Refused(f"finetune=lora: {str(e).strip().splitlines()[0][:200]}") from e
        for p in moving:
            p.requires_grad_(True)

    def size(self, model: nn.Module, inputs: Inputs | None = None) -> tuple[int, int]:
        """(layers with an adapter, weights in the adapters). Raises Refused: as `paths`."""
        layers, paths = _layers(model), self.paths(model, inputs)
        return len(paths), sum(self.r * _beside(layers[path]) for path in paths)


def folded(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` as it would be without adapters that say the same: W + alpha / r * B A."""
    layers = _adapted(model)
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        path, _, own = name.rpartition(".base_layer.")
        if path in layers:
            delta = layers[path].get_delta_weight(NAME).to(value) if own == "weight" else 0
            out[f"{path}.{own}"] = value + delta
        elif not any(name.startswith(f"{path}.") for path in layers):
            out[name] = value
    return out


def fold(model: nn.Module) -> None:
    """Give `model` its own layers back, in place, with what their adapters say in their weights."""
    state = {name: value.detach().clone() for name, value in folded(model).items()}
    for path, layer in _adapted(model).items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.load_state_dict(state)


def _library() -> Any:
    try:
        import peft
    except ImportError:
        raise Refused("finetune=lora needs peft: pip install 'sftc[text]'") from None
    return peft


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {path: m for path, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> each layer that could have an adapter: dense or convolution, not of the head, called as a layer is."""
    heads = tuple(f"{path}." for path in surgery.head_names(model))
    bypassed = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, BYPASSED))
    kinds = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) or _turned(m)}
    return {path: m for path, m in kinds.items() if not f"{path}.".startswith(heads + bypassed)}


def _turned(module: nn.Module) -> bool:
    """Whether a layer is transformers' dense one whose weight stands the other way round, as GPT-2 has it."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _called(model: nn.Module, inputs: Inputs, layers: dict[str, nn.Module]) -> set[str]:
    called: set[str] = set()
    hooks = [m.register_forward_hook(lambda *_, path=path: called.add(path)) for path, m in layers.items()]
    with surgery.evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(inputs)
    for hook in hooks:
        hook.remove()
    return called


def _side(layer: Any) -> int:
    """The largest rank its weight can have."""
    return min(layer.weight.shape[0], math.prod(layer.weight.shape[1:]))


def _beside(layer: Any) -> int:
    """Weights of an adapter of rank 1."""
    out, *rest = layer.weight.shape
    return out + math.prod(rest)


def _meant(path: str, target: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in (target, f"*.{target}"))


def _absent(target: str, layers: dict[str, nn.Module], silent: set[str], model: nn.Module) -> str:
    modules = dict(model.named_modules())
    matching = [path for path in modules if path and _meant(path, target)]
    if any(path in silent for path in matching):
        return f"the model reads the weights of {matching[0]} without calling it, so an adapter would say nothing"
    if any(f"{path}.".startswith(tuple(f"{h}." for h in surgery.head_names(model))) for path in matching):
        return f"{target} is the head, which learns as a whole; leave it away"
    ends = list(dict.fromkeys(path.rpartition(".")[2] for path in layers))
    shown = ", ".join(dict.fromkeys(e for e in ends if not e.isdigit())) or ", ".join(list(layers)[:5])
    if matching:
        kind = type(modules[matching[0]]).__name__
        return f"{matching[0]} is of kind {kind}, which can have no adapter (there are {shown})"
    return f"no layer is called {target}{nearest(target, [*ends, *layers])} (there are {shown})"
