"""Models of one architecture run as one: their weights side by side, one forward through all of them (torch.func.vmap).

The members stay what they are. Their weights are stacked anew for each forward and gradients reach them through the
stacking, so whatever steps, clips, averages, scores or stores a member needs to know nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sftc.errors import Refused
from sftc.models.text.tokens import Tokens
from sftc.types import Inputs

WAY_OUT = "set strategy.lockstep=true, which trains any members together"


class Stacked:
    """Several models as one.

    Args:
        models: the same modules around other weights; their order is that of the answers.

    Raises:
        Refused: they differ, draw random numbers (dropout), read texts, or are compiled.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        first = _form(self.models[0])
        for i, model in enumerate(self.models):
            if (own := _form(model)) != first:
                other = next(n for n in [*first, *own] if first.get(n) != own.get(n))
                raise Refused(f"lockstep=vmap: member {i} differs from member 0 in {other}; {WAY_OUT}")
            if model._compiled_call_impl is not None:
                raise Refused(f"lockstep=vmap cannot stack compiled models; set device.compile=false, or {WAY_OUT}")
        for name, module in self.models[0].named_modules():
            if isinstance(module, Tokens):
                raise Refused(f"lockstep=vmap: {name} cuts texts into tokens, which is not done by torch; {WAY_OUT}")
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise Refused(f"lockstep=vmap: {name} is dropout (p={module.p:g}), another draw each; {WAY_OUT}")
        # What is no part of the state (scaling of pictures) follows the config and is the same: stacked, it would only
        # make every member prepare the same inputs again.
        kept = self.models[0].state_dict()
        self._moving = [name for name, _ in self.models[0].named_buffers() if name in kept]

    def __call__(self, which: Sequence[int], inputs: Inputs) -> list[Tensor]:
        """Logits [N, C] of each of the models `which`, which must all be in one mode; running statistics follow."""
        states = [_tensors(self.models[i]) for i in which]
        own = [*dict(self.models[which[0]].named_parameters()), *self._moving]
        stacked = {name: torch.stack([state[name] for state in states]) for name in own}
        base = self.models[which[0]]

        def call(tensors: dict[str, Tensor], inputs: Inputs) -> Tensor:
            with _attention(stacked):
                return functional_call(base, tensors, (inputs,))

        logits = vmap(call, in_dims=(0, None), randomness="error")(stacked, inputs)
        with torch.no_grad():
            for name in self._moving:
                for state, moved in zip(states, stacked[name].unbind(0), strict=True):
                    state[name].copy_(moved)
        return list(logits.unbind(0))

    def check(self, inputs: Inputs) -> None:
        """A forward in training mode that leaves no trace.

        Raises:
            Refused: something in the models cannot be done for all of them at once.
        """
        before = [{n: _tensors(m)[n].clone() for n in self._moving} for m in self.models]
        modes = [{module: module.training for module in m.modules()} for m in self.models]
        try:
            for model in self.models:
                model.train()
            with torch.no_grad():
                self(range(len(self.models)), inputs)
        except RuntimeError as error:
            raise Refused(f"lockstep=vmap: {str(error).strip().splitlines()[0][:200]}; {WAY_OUT}") from error
        finally:
            for model, held, mode in zip(self.models, before, modes, strict=True):
                for name, value in held.items():
                    _tensors(model)[name].copy_(value)
                for module, training in mode.items():
                    module.training = training


def _attention(tensors: dict[str, Tensor]) -> contextlib.AbstractContextManager:
    """On a CPU vmap would go through torch's fused attention member by member, and warn of it."""
    cpu = all(t.device.type == "cpu" for t in tensors.values())
    return sdpa_kernel(SDPBackend.MATH) if cpu else contextlib.nullcontext()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _form(model: nn.Module) -> dict[str, Any]:
    """What members must have in common: kinds of layers with their settings, and shapes."""
    layers = {name or "kind": f"{type(m).__name__}({m.extra_repr()})" for name, m in model.named_modules()}
    return layers | {name: (t.shape, t.dtype) for name, t in _tensors(model).items()}
