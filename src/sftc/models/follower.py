"""A net that reads what other models say: their logits, their probabilities, or a layer inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused, choose
from sftc.models import keys, own
from sftc.models.surgery import Tapped, evaluating
from sftc.types import Form, Inputs, Out

COMBINE = ("concat", "sum")
SQUASH = {"classes": lambda logits: logits.softmax(1), "labels": torch.sigmoid}
KEYS = ("taps", "combine", "leaders")  # beside those of the net


class Follower(nn.Module):
    """`net` on what `leaders` say of the inputs.

    Its weights are the net's alone. Leaders are no submodules: neither its files nor its optimizer hold them, and they
    are asked in eval mode without gradients; but they move with it to a device. Inputs that hold what leaders said
    under `key` are read as they are, so that leaders need not be asked once per follower.

    Args:
        taps: of each leader: logits, probabilities or a module path.
        combine: concat the leaders' outputs; or sum: the net reads each of them by itself, [M * N, ...] at once, and
            answers the mean of its logits.
        kinds: of each leader: classes, labels or values, which say what its probabilities are.
    """

    def __init__(
        self, net: nn.Module, leaders: Sequence[nn.Module], taps: Sequence[str], combine: str, kinds: Sequence[str]
    ) -> None:
        super().__init__()
        self.net = net
        self.taps, self.combine, self.kinds = list(taps), combine, list(kinds)
        self.heads: list[str] = []  # the last layer
        self.facts: dict[str, Any] = {}
        self.loaded: set[str] = set()
        self.seat(leaders)

    @property
    def key(self) -> str:
        return ", ".join(f"{name}: {tap}" for name, tap in zip(self.names, self.taps, strict=True))

    @property
    def leaders(self) -> list[nn.Module]:
        return self._leaders.models

    def seat(self, leaders: Sequence[nn.Module], names: Sequence[str] | None = None) -> None:
        """Read these models from now on, which who trains followers calls so.

        Raises:
            Refused: one lacks the layer that is tapped.
        """
        self._leaders = _Leaders(leaders, self.taps)
        self.names = [f"leader{i}" for i in range(len(leaders))] if names is None else list(names)

    def wanted(self, leader: int) -> list[str]:
        """Module paths it reads of a leader."""
        return _paths(self.taps[leader])

    def heard(self, outs: Sequence[Out]) -> Tensor:
        """What the net reads, of what each leader said of N rows: [N, ...], or [M * N, ...] for combine=sum.

        Raises:
            Refused: the leaders' outputs do not fit together.
        """
        said = []
        for out, tap, kind in zip(outs, self.taps, self.kinds, strict=True):
            value = out.features[tap] if _paths(tap) else out.logits
            said.append(SQUASH[kind](value) if tap == "probabilities" else value)
        axis = 0 if self.combine == "sum" else 1
        shapes = [tuple(s.shape[1:]) for s in said]
        if len({s if axis == 0 else (len(s), *s[1:]) for s in shapes}) > 1:
            more = "" if axis == 0 else " beyond their first dimension"
            raise Refused(f"combine={self.combine} needs leaders' outputs of one shape{more}, not {shapes}")
        return said[0] if len(said) == 1 else torch.cat(said, axis)

    def forward(self, inputs: Inputs) -> Tensor:
        """What the leaders read, or a dict that holds what they said -> logits [N, out_dim]."""
        if isinstance(inputs, dict) and self.key in inputs:
            return self.net(inputs[self.key])
        logits = self.net(self.heard(self._leaders(inputs)))
        if self.combine == "sum":
            logits = logits.unflatten(0, (len(self.taps), -1)).mean(0)
        return logits

    def whole(self) -> dict[str, Tensor]:
        """All weights, the leaders' too."""
        inside = {f"leaders.{i}.{k}": v for i, m in enumerate(self.leaders) for k, v in m.state_dict().items()}
        return self.state_dict() | inside

    def load_whole(self, state: Mapping[str, Tensor]) -> None:
        """What `whole` gave."""
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("leaders.")})
        for i, model in enumerate(self.leaders):
            prefix = f"leaders.{i}."
            model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _apply(self, fn: Any, recurse: bool = True) -> Follower:
        for model in self.leaders:
            model._apply(fn)
        return super()._apply(fn, recurse)


class _Leaders:
    """Models that are asked together. A copy of a follower, such as its average, asks the same ones."""

    def __init__(self, models: Sequence[nn.Module], taps: Sequence[str]) -> None:
        self.models = list(models)
        self._tapped = [Tapped(m, _paths(tap)) for m, tap in zip(models, taps, strict=True)]

    def __deepcopy__(self, memo: Any) -> _Leaders:
        return self

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> list[Out]:
        outs = []
        for tapped in self._tapped:
            with evaluating(tapped.model):
                out = tapped(inputs)
            outs.append(Out(out.logits, {k: v.float() for k, v in out.features.items()}))
        return outs


def _paths(tap: str) -> list[str]:
    return [] if tap in ("logits", "probabilities") else [tap]


def check(spec: Mapping[str, Any]) -> None:
    """Refuse what no leader could mend."""
    family = choose("follower.model", spec["name"], own.NETS)
    own.check({"family": family, **_net(spec)})
    choose("combine", spec["combine"], COMBINE)
    for leader, tap in zip(spec["leaders"], spec["taps"], strict=True):
        if leader["model"]["family"] == "follower":
            raise Refused(f"a follower cannot follow a follower ({leader['model']['name']}); name its leader")
        if leader["kind"] in ("tags", "pixels"):
            each = "word" if leader["kind"] == "tags" else "pixel"
            raise Refused(f"a follower reads one answer a row, its leader has one for each {each}: set followers=[]")
        if tap == "probabilities" and leader["kind"] not in SQUASH:
            raise Refused(f"tap=probabilities: the leader predicts {leader['kind']}; use tap=logits")


def build(spec: Mapping[str, Any], out_dim: int, form: Form) -> Follower:
    """The follower with leaders of random weights: `seat` trained ones.

    Raises:
        Refused: a layer that is not there, or of a rank that the net cannot read.
    """
    from sftc import models  # which knows this file

    check(spec)
    leaders = [
        models.build(x["model"], out_dim=x["out_dim"], form=Form(x["shape"], x.get("form"), x.get("about")))
        for x in spec["leaders"]
    ]
    follower = Follower(nn.Identity(), leaders, spec["taps"], spec["combine"], [x["kind"] for x in spec["leaders"]])
    read = tuple(follower.heard(follower._leaders(form.blank())).shape[1:])
    if spec["name"] == "simple_cnn" and len(read) != 3:
        raise Refused(
            f"a simple_cnn follower reads maps of shape [C, H, W], and {spec['taps'][0]} gives {list(read)}: "
            "use model=mlp, or tap a convolution"
        )
    follower.net = own.NETS[spec["name"]](read, out_dim, **_net(spec))
    follower.heads = ["net.head"]
    follower.facts = {"pretrained": "no", "reads": f"{', '.join(spec['taps'])} of shape {list(read)}"}
    return follower


def _net(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keys.rest(spec).items() if k not in KEYS}
