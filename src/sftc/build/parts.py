"""One node of a config -> one part, and every `auto` in it replaced by what was chosen."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sftc import data as datasets
from sftc import models, optim, track
from sftc.build import leaders
from sftc.build.facts import Facts
from sftc.data import Data
from sftc.device import Device
from sftc.errors import Refused, choose
from sftc.lab import Settings
from sftc.loop import Budget, Care
from sftc.store import Run
from sftc.strategies import STRATEGIES
from sftc.tasks import TASKS, check_quantiles, fitting_loss, fitting_monitor
from sftc.types import Form, Strategy, Task

Config = dict[str, Any]
UNTOLD = ("family", "name", "params", "mean", "std", "config")  # of a model's facts, in the line about it


def check(cfg: Config) -> None:
    """Everything that can be refused before any data is read. Raises Refused."""
    if cfg.get("resume") and cfg["resume"] != "auto":
        return
    strategy(cfg)
    Device(**cfg["device"])
    for node in model_nodes(cfg):
        models.check(node)
    datasets.check(cfg["data"])
    choose("tracker", cfg["tracker"]["name"], track.TRACKERS)
    kind = datasets.READERS[cfg["data"]["name"]].kind or cfg["data"]["kind"]
    if kind in TASKS:  # else the data will say
        fitting_monitor(cfg["monitor"], kind)
    for own in (cfg, *({**cfg, **change} for change in cfg["strategy"].get("each") or [])):
        optim.check(own["optim"], own["schedule"], own["finetune"])
        _check_ending(own["loss"]["name"], own["model"])
        if kind in TASKS:
            fitting_loss(own["loss"]["name"], kind)
        check_quantiles(own["loss"].get("quantiles"))
        if own["finetune"]["name"] == "lora" and own["penalty"]["l2_sp"]:
            raise Refused(
                f"penalty.l2_sp={own['penalty']['l2_sp']:g} holds weights near their start, and with finetune=lora "
                "they do not move; leave it at 0"
            )
        if own["max_steps"] is None and own["epochs"] < 1:
            raise Refused("epochs=0 and no max_steps: nothing to train; set one of them")


def _check_ending(loss: str, model: Config) -> None:
    """The negative log-likelihood of what are no log-probabilities has no lower bound."""
    if loss == "nll" and not model.get("log_softmax"):
        way = "set model.log_softmax=true, or " if "log_softmax" in model else ""
        raise Refused(
            f"loss=nll needs a model that ends in LogSoftmax, {model['name']} does not; {way}"
            "use loss=cross_entropy, which is the same and takes any"
        )


def strategy(cfg: Config) -> Strategy:
    node = dict(cfg["strategy"])
    name = choose("strategy", node.pop("name"), STRATEGIES)
    return STRATEGIES[name](**node)


def task(cfg: Config, data: Data | Facts) -> Task:
    """The task the data asks for, with the configured loss."""
    node = dict(cfg["loss"])
    more: dict[str, Any] = {"loss": fitting_loss(node.pop("name"), data.kind), "monitor": cfg["monitor"]}
    smoothing = node.pop("smoothing", 0.0)
    classes = "classes" in TASKS[data.kind].offers
    if classes:
        more["smoothing"] = smoothing
    elif smoothing:
        raise Refused(f"loss.smoothing={smoothing} is for classes; the data holds {data.kind}: leave it at 0")
    if not classes and cfg["model"].get("log_softmax"):
        raise Refused(f"model.log_softmax=true is for classes; the data holds {data.kind}: leave it at false")
    if data.kind == "values":
        return TASKS["values"](data.class_names, mean=data.target_mean, std=data.target_std, **more, **node)
    return TASKS[data.kind](data.class_names, class_weight=data.class_weights, **more, **node)


def settings(cfg: Config) -> Settings:
    return Settings(
        optim=cfg["optim"],
        schedule=cfg["schedule"],
        finetune=cfg["finetune"],
        budget=Budget(cfg["epochs"], cfg["max_steps"], cfg["patience"], cfg["target"]),
        batch_size=cfg["batch_size"],
        eval_batch_size=cfg["eval_batch_size"],
        micro_batch_size=cfg["micro_batch_size"],
        care=Care(**cfg["checkpoint"], nonfinite=cfg["on_nonfinite"], oom=cfg["oom"]),
        clip=cfg["clip"],
        ema=cfg["ema"],
        l1=cfg["penalty"]["l1"],
        l2_sp=cfg["penalty"]["l2_sp"],
        semi=cfg["semi"],
    )


def bare(node: Config) -> Config:
    """A model node without its first weights: what a stored run is rebuilt from, with no network and no other file."""
    gone: Config = {"pretrained": False, "checkpoint": None}
    if "path" in node:  # of an encoder, whose config and tokeniser the run holds
        gone["path"] = None
    if node["family"] == "follower":
        gone["leaders"] = [{**leader, "model": bare(leader["model"])} for leader in node["leaders"]]
    return {**node, **gone}


def resolve_model(node: Config, model: nn.Module) -> Config:
    """Every `auto` of a model node replaced by what was chosen."""
    facts = getattr(model, "facts", {})
    named = ("input_size", "mean", "std", "vocabulary", "config", "sound")
    chosen = {k: facts[k] for k in named if k in facts and k in node}
    pretrained = {"pretrained": facts.get("pretrained") == "loaded"}
    return {**resolve_files(node), **chosen, **(pretrained if "pretrained" in node else {})}


def resolve_files(node: Config) -> Config:
    """A model node whose files are named by their full path."""
    files = {key: os.path.expanduser(node[key]) for key in ("checkpoint", "path") if node.get(key)}
    if "path" in files and not os.path.isdir(files["path"]):  # the name of a hub
        del files["path"]
    return {**node, **{key: os.path.abspath(file) for key, file in files.items()}}


def largest_input(cfg: Config) -> int | None:
    """Side in pixels of the largest input among the models of a run, where they say: what batches should hold."""
    sizes = [n["input_size"] for n in model_nodes(cfg) if isinstance(n.get("input_size"), int)]
    return max(sizes, default=None)


def model_nodes(cfg: Config) -> list[Config]:
    """Every model node of a config: the run's own, and those its strategy names."""
    named = [each for n in cfg["strategy"].values() for each in (n if isinstance(n, list) else [n])]
    named += [n["model"] for n in cfg["strategy"].get("each") or [] if "model" in n]
    return [cfg["model"], *(n for n in named if isinstance(n, dict) and "family" in n)]


def resolve_data(node: Config, data: Data) -> Config:
    out = dict(node)
    if out.get("root"):
        out["root"] = os.path.abspath(os.path.expanduser(out["root"]))
    if "size" in out and len(data.shape) == 3:
        out["size"] = min(data.shape[1:])
    if data.form.kind == "sound":
        rate = data.form.about["rate"]
        out |= {"rate": rate, "seconds": data.shape[1] / rate}
    return {**out, "download": False} if "download" in out else out


def found_runs(entries: list[Any]) -> list[str]:
    """Run folders by what a user names: a folder, a pattern, or a sweep, whose jobs are taken in order.

    Raises:
        Refused: there is none.
    """
    out: list[str] = []
    for entry in map(str, entries):
        path = os.path.expanduser(entry)
        matches = sorted(glob.glob(path), key=_natural) if glob.has_magic(path) else [path]
        runs = [p for p in matches if os.path.isfile(os.path.join(p, "config.yaml"))]
        for folder in matches if not runs else []:
            inside = sorted(glob.glob(os.path.join(glob.escape(folder), "*", "config.yaml")), key=_natural)
            runs += [os.path.dirname(p) for p in inside]
        if not runs:
            Run.open(path)  # says what is nearest
            raise Refused(f"runs={entry} matches no run folder")
        out += runs
    return list(dict.fromkeys(out))


def _natural(path: str) -> list[Any]:
    """Sorts job 10 after job 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def resolve_strategy(node: Config) -> Config:
    """Runs and files are named by their full path, so that the run can be gone on with from any folder."""

    def full(value: Any) -> Any:
        if isinstance(value, list):
            return [full(v) for v in value]
        if isinstance(value, dict) or value in ("auto", "pretrained"):
            return value
        return os.path.abspath(os.path.expanduser(str(value)))

    named = {k: full(node[k]) for k in ("teachers", "runs", "source") if node.get(k)}
    if "leaders" in node and isinstance(node["leaders"], dict):
        named["leaders"] = {
            name: {**own, "source": full(own["source"])} if isinstance(own, dict) and "source" in own else own
            for name, own in node["leaders"].items()
        }
    if node.get("each"):
        named["each"] = [{**n, "model": resolve_files(n["model"])} if "model" in n else n for n in node["each"]]
    models = {k: resolve_files(n) for k, n in node.items() if isinstance(n, dict) and "family" in n}
    return {**node, **named, **models}


def make_model(
    node: Config, data: Data | Facts, began: Config | None = None, home: Run | None = None
) -> Callable[[], nn.Module]:
    """() -> a fresh model.

    Args:
        began: `origin` of the model the run began with, when this one is built without it.
        home: the run it belongs to, where that names the leaders of a follower.
    """

    def build() -> nn.Module:
        model = models.build(node, out_dim=data.out_dim, form=data.form)
        if isinstance(model, models.Follower) and home is not None:
            leaders.load(model, home)
        if began is not None:
            model.facts, model.loaded = dict(began["facts"]), set(began["loaded"])
        return model

    return build


def origin(model: models.Vision | models.Follower) -> Config:
    """Where a model's first weights came from, and what was chosen for it, in plain types."""
    return {"facts": model.facts, "loaded": sorted(model.loaded)}


def first_model(cfg: Config, data: Data) -> models.Vision | models.Follower:
    """The model as it starts. Made before the folder is, so that what cannot be built leaves nothing behind.

    Raises:
        Refused: it cannot be built, or not be fine-tuned as asked for, such as by more blocks than it has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg["seed"])
        model = models.build(cfg["model"], out_dim=data.out_dim, form=data.form)
    if moves := optim.finetune(cfg["finetune"]).moving(model, _seen(model, data.form)):
        model.facts["moves"] = moves
    return model


def _seen(model: nn.Module, form: Form) -> torch.Tensor | None:
    """A row as the model reads it, unless it reads what leaders say of it."""
    return None if isinstance(model, models.Follower) else form.blank()


def about(facts: Config) -> str:
    """One line on the model that was built."""
    facts = {k: v.get("summary", v) if isinstance(v, dict) else v for k, v in facts.items()}
    rest = "; ".join(f"{k} {v}" for k, v in facts.items() if k not in UNTOLD)
    return f"model {facts['name']}: {facts['params']:,} parameters; {rest}"


def check_rows(model: nn.Module, data: Data, batch_size: int) -> None:
    """Raises Refused: BatchNorm would have to train on a single row."""
    rows = min(batch_size, len(data.splits["train"].rows))
    if rows < 2 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise Refused("BatchNorm cannot train on one row at a time; use batch_size=2 or more, and at least two rows")


def multiply_adds(model: nn.Module, form: Form) -> float:
    """Of one row's forward through the dense and convolution layers: nearly all there is."""
    counts: list[float] = []

    def count(layer: nn.Module, _inputs: Any, out: torch.Tensor) -> None:
        weight: Any = layer.weight
        counts.append(weight.numel() * out[0].numel() / weight.shape[0])

    layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d))
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()(form.blank())
    model.train(was)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def once(first: nn.Module | None, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The first call gives the model that was already built to see that it can be; the same seed made it."""
    held = [first] if first is not None else []
    return lambda: held.pop() if held else build()
