"""What a leader learned before the target: a finished run, published weights, or data it is trained on first."""

from __future__ import annotations

import inspect
from typing import Any

from sftc import data as datasets
from sftc.data import COMMON, GIVEN, READERS, Data
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.strategies.following import bare
from sftc.tasks import fitting_loss, fitting_monitor

TARGETS = ("classes", "limit", "unlabeled", "class_weights")  # of a data node: what is about the target's task alone


def model_of(lab: Lab, source: Any) -> dict[str, Any]:
    """The model node of a source, without its first weights.

    Raises:
        Refused: a run that is not finished, or whose rows or model are no use here.
    """
    if source == "pretrained" and not getattr(lab.model(), "loaded", None):
        raise Refused("strategy.source=pretrained, and the model loads no weights: set model.checkpoint=PATH")
    if not isinstance(source, str) or source == "pretrained":
        return bare(lab)
    home = lab.open(source)
    if not home.run.finished:
        raise Refused(f"source {source} is not finished; finish it: sftc train resume={source}")
    mine, theirs = lab.facts.form, home.facts.form
    if not mine.fits(theirs):
        raise Refused(f"source {source} learned rows of form {theirs}; the target's are {mine}")
    if home.run.config["model"]["family"] == "follower":
        raise Refused(f"source {source} is a follower, which reads leaders and cannot be one; name its leader")
    return grown(lab, home)


def grown(lab: Lab, home: Lab) -> dict[str, Any]:
    """The model node of the target for a source that classified whole pictures: it becomes the way down of a dense net.

    Where source and target answer alike, the source's own.

    Raises:
        Refused: the run's own model is no dense net on that backbone.
    """
    theirs, mine = bare(home), bare(lab)
    if (home.facts.kind == "pixels") == (lab.facts.kind == "pixels"):
        return theirs
    name = theirs["name"]
    unet = theirs["family"] == "timm" and (mine["family"], mine.get("backbone")) == ("unet", name)
    dense = (theirs["family"], mine["family"]) == ("torchvision", "torchvision_segmentation")
    if not unet and not (dense and mine["name"].endswith(f"_{name}")):
        ways = {"timm": f"model=unet model.backbone={name}"}
        ways["torchvision"] = f"model=torchvision_segmentation and a model.name that ends in _{name}"
        way = ways.get(theirs["family"], "a source of model=timm, or torchvision")
        raise Refused(f"source {home.run.path} classified pictures with {theirs['name']}; to grow it use {way}")
    return {**mine, "mean": theirs["mean"], "std": theirs["std"]}


def data(lab: Lab, source: Any) -> Data | None:
    """What a source is to be trained on, read to see that it can be; None where it is trained already.

    Raises:
        Refused: it cannot be read, or is of a kind that the loss is not for.
    """
    return read(lab, data_of(lab.run.config["data"], source)) if isinstance(source, dict) else None


def read(lab: Lab, node: dict[str, Any]) -> Data:
    """The data of a member, before any other learns. Raises Refused: see `data`."""
    found = datasets.build(node)
    fitting_loss(lab.run.config["loss"]["name"], found.kind)
    fitting_monitor(lab.run.config["monitor"], found.kind)
    return found


def made(lab: Lab, name: str, source: Any, node: dict[str, Any]) -> str:
    """The run folder of a source, trained now or by an earlier run; `name` is what this run calls it.

    Args:
        node: the keys source_epochs, source_lr, source_seed and reuse.
    """
    if isinstance(source, str) and source != "pretrained":
        if lab.run.reference(name) is None:
            lab.run.refer(name, lab.open(source).run.path.resolve())
        return str(lab.run.reference(name))
    config = lab.run.config
    groups: dict[str, Any] = {"seed": node["source_seed"], "target": None, "max_minutes": None}
    groups |= {
        "finetune": {"name": "full"},
        "semi": {"name": "none"},
        "data": data_of(config["data"], {} if source == "pretrained" else source),
    }
    if source == "pretrained":
        groups["data"] = config["data"]
    if node["source_epochs"] is not None:
        groups["epochs"] = node["source_epochs"]
    if node["source_lr"] is not None:
        groups["optim"] = {**config["optim"], "lr": node["source_lr"]}
    home = lab.share(name, reuse=node["reuse"], **groups)
    if home.run.finished:
        lab.watch.say(f"{name}: {home.run.path} is there already")
    elif source == "pretrained":
        home.keep(home.untrained(home.model()))
    else:
        lab.watch.say(f"{name}: training on {_spoken(source)} first, in {home.run.path}")
        (fitted,) = home.fit(home.model())
        home.keep(fitted)
    home.run.unlock()
    lab.run.refer(name, home.run.path)
    return str(home.run.path)


def data_of(target: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """The data node of a source: the target's, less what is about its task, with what the source says itself."""
    name = source.get("name", target["name"])
    start = {k: v for k, v in target.items() if k in COMMON or name == target["name"]}
    start |= {k: COMMON[k] for k in TARGETS}
    if name != target["name"] and name in READERS:
        reader = READERS[name]
        own = inspect.signature(reader.open).parameters.items()
        start |= {k: p.default for k, p in own if k not in (*COMMON, *GIVEN) and p.default is not p.empty}
        if reader.locate is None:  # it needs no files
            start |= {k: COMMON[k] for k in ("root", "download")}
        if reader.form != READERS[target["name"]].form:
            start |= {k: COMMON[k] for k in ("size", "augment")}
    return {**start, **source}


def _spoken(source: dict[str, Any]) -> str:
    return ", ".join(f"data.{k}={v}" for k, v in source.items()) or "the target's data, all of it"
