"""Models: a config node in, `model(batch.inputs) -> logits [N, out_dim]` out.

Families are an explicit table: our own small nets, those that distillation is compared on, every architecture timm and
torchvision know by name, and those that read texts.
Pictures enter as raw bytes; normalising and resizing is the model's first module, so that a teacher and a
student cannot disagree about a loader. So do texts, and tokenising is the model's first module; of sounds that makes
pictures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from sftc.errors import Refused, choose
from sftc.models import cifar, dense, follower, heads, hub, keys, own, spectrogram, tabular, text, weights
from sftc.models.follower import Follower
from sftc.models.vision import Prepare, Vision
from sftc.types import Form

FAMILIES: dict[str, ModuleType] = {**dict.fromkeys(own.NETS, own), "cifar": cifar, "follower": follower}
FAMILIES |= dict.fromkeys(hub.HUBS, hub) | dict.fromkeys(tabular.NETS, tabular) | dict.fromkeys(text.FAMILIES, text)
FAMILIES |= dict.fromkeys(dense.FAMILIES, dense)

# What the rows of each kind are called, the model to take for them, and who reads what. Whoever reads pictures reads
# sounds, as spectrograms.
ROWS = {"picture": "pictures", "table": "rows of numbers", "text": "texts", "sound": "sounds"}
INSTEAD = {"picture": "simple_cnn", "table": "mlp", "text": "text_cnn", "sound": "audio_cnn"}
READS = {
    "mlp": ("picture", "table", "sound"),
    "linear": ("picture", "table", "sound"),
    "audio_cnn": ("sound",),
    "audio_bilstm": ("sound",),
    **dict.fromkeys(text.FAMILIES, ("text",)),
    "follower": tuple(ROWS),  # whatever its leaders read
    **dict.fromkeys(tabular.NETS, ("table",)),
}


def check(spec: Mapping[str, Any]) -> None:
    """Find what is wrong with a model node before any data is read.

    Raises:
        Refused: unknown name, bad value, unreadable checkpoint, or `pretrained=true` without weights.
    """
    family = choose("model.family", spec["family"], FAMILIES)
    keys.check(spec)
    spectrogram.check(spec)
    if spec.get("checkpoint"):
        weights.read(spec["checkpoint"])
    FAMILIES[family].check(spec)


def build(spec: Mapping[str, Any], *, out_dim: int, form: Form | Sequence[int]) -> Vision | Follower:
    """The model a node describes, for rows of `form` and `out_dim` numbers per row.

    Draws its first weights from torch's global generator. `model.facts` says in plain types what was chosen;
    the same node with `pretrained=False, checkpoint=None` and the facts' input_size, mean and std rebuilds it
    offline.

    Raises:
        Refused: the node, the form of the rows and the weights at hand do not fit together.
    """
    family, form = choose("model.family", spec["family"], FAMILIES), Form.of(form)
    reads = READS.get(family, ("picture", "sound"))
    if form.kind not in reads:
        said = " and ".join(ROWS[kind] for kind in reads if kind == reads[0] or kind != "sound")
        raise Refused(
            f"model={spec['name']} reads {said}, the data has {ROWS[form.kind]}; use model={INSTEAD[form.kind]}"
        )
    heard = None
    if form.kind == "sound" and family != "follower":
        heard = spectrogram.build(spec, form)
        form = Form(heard.picture(form.shape[1]))
    _check_answers(family, spec, form)
    model = FAMILIES[family].build(spec, out_dim, form)
    model.facts |= {"family": family, "name": spec["name"]}
    if keys.head(spec) != "linear":
        heads.grow(model, spec, out_dim, form, getattr(FAMILIES[family], "unpool", None))
    if heard is not None:
        model.prepare = nn.Sequential(OrderedDict(spectrogram=heard, picture=model.prepare))
        model.facts["sound"] = spectrogram.settings(heard)
    if spec.get("checkpoint"):
        model.facts["checkpoint"] = report = weights.load(model, spec["checkpoint"])
        model.loaded = {n for n, _ in model.named_parameters()} - {*report["missing"], *report["shape_mismatch"]}
        model.facts["pretrained"] = "checkpoint"
    model.facts["params"] = sum(p.numel() for p in model.parameters())
    return model


def _check_answers(family: str, spec: Mapping[str, Any], form: Form) -> None:
    """Raises Refused: it answers at every pixel and the data for a whole picture, or the other way round."""
    if family == "follower" or (family in dense.FAMILIES) == bool(form.about.get("pixels")):
        return
    if family in dense.FAMILIES:
        raise Refused(
            f"model={spec['name']} answers at every pixel, the data says one thing of a row; use model=resnet18"
        )
    raise Refused(
        f"model={spec['name']} answers once for a picture, the data has a class for each pixel; use model=unet"
    )


__all__ = ["FAMILIES", "Follower", "Prepare", "Vision", "build", "check", "text"]
