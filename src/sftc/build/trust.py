"""Between a run folder and all that is built from it: what is stored may be damaged, or made to do harm.

A config is held against the same YAML as a command line, a model against the header of its weights before any memory
is taken for it. What then still goes wrong because of stored content is one line that names the run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from torch import nn

from sftc import models
from sftc.build import parts
from sftc.build.facts import FILE, Facts
from sftc.build.parts import Config
from sftc.errors import Refused, Stopped, choose
from sftc.models import bounds, keys
from sftc.models.hub import HUBS
from sftc.schema import Keys, parse_rule, read
from sftc.schema.members import TOP
from sftc.schema.places import GLOBAL, conf_dir, defaults, find, lineage, top
from sftc.store import Run

NEEDED = (
    *("data", "model", "strategy", "optim", "schedule", "finetune", "loss", "semi", "device", "tracker"),
    *("seed", "monitor", "epochs", "max_steps", "max_minutes", "batch_size", "micro_batch_size", "eval_batch_size"),
    *("clip", "ema", "patience", "target", "penalty", "checkpoint", "on_nonfinite", "oom"),
)
NOT_STORED = ("out", "resume", "debug", "experiment", "quiet")  # of the command, not of the run
KEYED_BY = {"model": "family", "device": "accelerator"}  # which key names the YAML of a group; else `name`
OTHERS = {"optim": "timm"}  # the YAML of names that have none of their own
THREADS = 1024
SMALL = 1 << 24  # weights that any machine has room for
SPARE = 1_000  # tensors: buffers that no file holds, and what is said better by a comparison
TENSORS = 4_000  # of a model; the largest hubs' have half as many, and each takes time to make even without memory
AROUND = 8  # a hub's model is built a few times without memory to find its head and the size it reads
DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}

_seen: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}  # models whose weights were within their limit


@contextlib.contextmanager
def blaming(run: Run) -> Iterator[None]:
    """What goes wrong in here is the fault of what the run stores: one line, whatever it is."""
    try:
        yield
    except (Refused, Stopped):
        raise
    except Exception as e:
        said = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:200]}"
        raise Refused(f"{run.path} cannot be used: what is stored in it does not fit ({said})") from e


def stored_config(run: Run) -> Config:
    """The config of a run, every key of it one that `sftc train` declares, every value one that it allows.

    Raises:
        Refused: a key is missing, nothing reads it, or its value is not allowed; the file is named.
    """
    path = run.path / "config.yaml"
    with blaming(run):
        cfg = run.config
        if lacking := [key for key in NEEDED if key not in cfg]:
            raise Refused(f"{path} lacks {', '.join(lacking)}; it was not written by sftc train")
        try:
            known = _declared([conf_dir()], cfg)
            if unknown := [k for k in known.unknown(cfg) if not _keyword(cfg, k)]:
                raise Refused(f"nothing reads {unknown[0]}; it was not written by sftc train")
            cfg = _with_later(known, cfg)
            if removed := known.removed(cfg):
                raise Refused(f"it lacks {', '.join(removed)}; another version of sftc wrote it, or none")
            return _tamed(known.check(cfg))
        except Refused as e:
            raise Refused(f"{path}: {e}") from None


def _with_later(known: Keys, cfg: Config) -> Config:
    """A key that came later has its default in it, which is what the older version did: at the top any, and in a group
    one that is null, which says that something is not there."""
    later = {k: s for k, s in known.specs.items() if "." not in k and k not in NEEDED}
    cfg = {**{k: yaml.safe_load(s.default) for k, s in later.items()}, **copy.deepcopy(cfg)}
    for path in known.removed(cfg):
        *above, last = path.split(".")
        node = functools.reduce(lambda node, part: node.get(part) if isinstance(node, dict) else None, above, cfg)
        if isinstance(node, dict) and known.specs[path].default == "null":
            node[last] = None
    return cfg


def _declared(dirs: list[Path], cfg: Config) -> Keys:
    """Every key that a config with these nodes may have."""
    top_file = top(dirs, "train")
    known = Keys()
    known.update(read(top_file))
    for key in NOT_STORED:
        known.specs.pop(key, None)
    known.specs["epochs"] = replace(known.specs["epochs"], rule="int >= 0", forms=parse_rule("int >= 0"))  # a teacher's
    for place, _ in defaults(top_file):
        group, _, slot = place.partition("@")
        if not group or group in GLOBAL:
            continue
        path = slot or group
        node: Any = cfg
        for part in path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if slot and node is None:  # a slot that the strategy does not have, or that is empty
            continue
        if not isinstance(node, dict):
            raise Refused(f"{path}={str(node)[:40]} holds no keys")
        _declare(dirs, group, path, node, known)
    for path, spec in known.specs.items():
        if any(form.kind == "models" for form in spec.forms):  # names as typed, nodes as stored
            known.specs[path] = replace(spec, rule="list", forms=parse_rule("list"))
            _check_models(dirs, path, cfg["strategy"].get(path.rpartition(".")[2]))
        elif any(form.kind == "changes" for form in spec.forms):
            _check_changes(dirs, path, cfg)
    return known


def _check_changes(dirs: list[Path], path: str, cfg: Config) -> None:
    """Raises Refused: what a member has of its own is not what `sftc train` would let it have."""
    listed = cfg["strategy"].get(path.rpartition(".")[2])
    for i, change in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(change, dict) or (other := sorted(map(str, change.keys() - TOP))):
            said = other[0] if isinstance(change, dict) else str(change)[:40]
            raise Refused(f"{path}[{i}]: {said} is nothing that a member has of its own")
        member = {**cfg, **change, "strategy": {"name": "plain"}}
        try:
            known = _declared(dirs, member)
            if unknown := [k for k in known.unknown(member) if not _keyword(member, k)]:
                raise Refused(f"nothing reads {unknown[0]}; it was not written by sftc train")
            known.check(member)
        except Refused as e:
            raise Refused(f"{path}[{i}]: {e}") from None


def _declare(dirs: list[Path], group: str, path: str, node: Config, known: Keys) -> None:
    """Add the keys of one node: of the option it came from."""
    known.specs.pop(path, None)
    known.nodes.add(path)
    option = _option(dirs, group, path, node)
    for _, file in lineage(dirs, group, option):
        known.update(read(file, path))
    member = option.startswith("_")  # that a strategy makes
    for key in [k for k in known.specs if k.startswith(f"{path}.")]:
        first = key[len(path) + 1 :].partition(".")[0]
        if first not in node and (member or (group == "model" and first in (*keys.LATER, "sound"))):
            del known.specs[key]  # it has a default in the code
    if group == "model":  # its name is a label of our own nets: a YAML of the user's may say another
        known.specs[f"{path}.name"] = replace(known.specs[f"{path}.name"], rule="str", forms=parse_rule("str"))
        leaders = node.get("leaders") or []
        _check_models(dirs, f"{path}.leaders", [x["model"] if isinstance(x, dict) else x for x in leaders])


def _check_models(dirs: list[Path], path: str, listed: Any) -> None:
    """Raises Refused: one of several model nodes has a key that nothing reads, or a value that is not allowed."""
    for node in listed if isinstance(listed, list) else []:
        if not isinstance(node, dict):
            raise Refused(f"{path}: {str(node)[:40]} is no model")
        keys = Keys(nodes={path})
        for _, file in lineage(dirs, "model", _option(dirs, "model", path, node)):
            keys.update(read(file, path))
        keys.specs.pop(f"{path}.name", None)
        rest = {path: {k: v for k, v in node.items() if k != "name"}}
        if (unknown := keys.unknown(rest)) and node["family"] not in HUBS:
            raise Refused(f"nothing reads {unknown[0]}; it was not written by sftc train")
        keys.check(rest)


def _option(dirs: list[Path], group: str, path: str, node: Config) -> str:
    """The YAML whose keys a stored node has."""
    key = KEYED_BY.get(group, "name")
    name = node.get(key)
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise Refused(f"{path}.{key}={str(name)[:40]} is no name")
    for option in (name, f"_{name}") if not name.startswith("_") else ():
        if find(dirs, f"{group}/{option}"):
            return option
    if group in OTHERS:
        return OTHERS[group]
    return choose(f"{path}.{key}", name, sorted(f.stem for f in (dirs[0] / group).glob("[!_]*.yaml")))


def _keyword(cfg: Config, path: str) -> bool:
    """Whether a key that we do not declare is one for timm's or torchvision's builder, from a YAML of the user's."""
    outer, _, key = path.rpartition(".")
    node: Any = cfg if outer == "model" else cfg["strategy"]
    node = node.get(outer.rpartition(".")[2]) if outer else None
    return isinstance(node, dict) and node.get("family") in HUBS and not key.startswith("_")


def _tamed(cfg: Config) -> Config:
    """The config without what would reach beyond reading: downloads, and more threads than a machine can have."""
    if cfg["device"]["threads"] != "auto" and cfg["device"]["threads"] > THREADS:
        raise Refused(f"device.threads={cfg['device']['threads']} is more than {THREADS}")
    workers = cfg["data"]["workers"]
    few = None if workers is None else min(workers, os.cpu_count() or 1)  # the batches are the same for any number
    return {**cfg, "data": {**cfg["data"], "download": False, "workers": few}}


def check_model(run: Run, cfg: Config, facts: Facts, which: str | None = None) -> None:
    """Hold the model that config and data.json describe against what the run holds, without memory for either.

    Args:
        which: the weights to be opened, model or last; None: the run goes on from a checkpoint, or from its start.

    Raises:
        Refused: other weights than the file's by name, shape or type; or more than memory has room for.
    """
    room = psutil.virtual_memory().available
    _check_room(run, cfg, facts, room)
    if run.fused:  # a rule over members, each a run that is looked at by itself
        if which == "last":
            raise Refused(f"{run.path} is a fusion: it has no last weights")
        return
    if which is not None:
        held = run.shapes(which)
        all_held = [held, *_of_leaders(run, cfg["model"])]
        count, elements = sum(map(len, all_held)), sum(math.prod(shape) for h in all_held for _, shape in h.values())
        limit = f"{which}.safetensors holds"
    else:
        held, count, limit = None, TENSORS, "there is memory for"
        elements = room // 8
        if saved := run.checkpoints.files():
            elements, limit = max(SMALL, *(file.stat().st_size for file in saved)), "its checkpoints hold"
    try:
        own = cfg["model"]["family"] in models.own.NETS
        times = 1 if own else AROUND
        # A hub's net is built whole, and what stood behind its last map, VGG's dense layers, is taken away again.
        inside = _with_leaders(cfg["model"])
        taken = any(n["family"] not in models.own.NETS and n.get("head") == "conv" for n in inside)
        spare = max(SMALL, room // 8) if taken else SMALL
        key = repr((parts.bare(cfg["model"]), facts.plain()))
        if held is None or key not in _seen:
            with bounds.no_more_than(times * count + SPARE, times * elements + spare, limit):
                model = _without_memory(parts.bare(cfg["model"]), facts)
            _seen[key] = {name: (value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()}
    except Refused as e:
        raise Refused(f"{run.path / 'config.yaml'}: {e}") from None
    if held is not None and which is not None:
        _compare(run, which, held, _seen[key])


def _of_leaders(run: Run, node: Config) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """What the files of a follower's leaders hold, by their headers. Raises Refused: one is gone."""
    if node["family"] != "follower":
        return []
    for leader in node["leaders"]:
        inner = leader["model"]
        if inner.get("pretrained") or inner.get("checkpoint"):
            raise Refused(f"{run.path / 'config.yaml'}: a leader's model names first weights; it is not trusted")
    try:
        paths = [run.reference(f"leader{i}") for i in range(len(node["leaders"]))]
        return [Run.open(path).shapes() for path in paths if path is not None]
    except Refused as e:
        raise Refused(f"follower {run.path} needs its leader: {e}") from None


def _with_leaders(node: Config) -> list[Config]:
    """A model node and those of the models it follows, theirs as well."""
    inner = node["leaders"] if node["family"] == "follower" else []
    return [node, *(n for leader in inner for n in _with_leaders(leader["model"]))]


def _check_room(run: Run, cfg: Config, facts: Facts, room: int) -> None:
    """Raises Refused: a batch of inputs as the data or the model has them would not fit into memory."""
    for node in parts.model_nodes(cfg):
        if node["family"] in HUBS:
            bounds.check_keywords({k: v for k, v in keys.rest(node).items() if k != "kwargs"})
            bounds.check_keywords(node.get("kwargs") or {}, "model.kwargs")
    shapes = [facts.shape]
    if len(facts.shape) == 3 and not isinstance(sides := keys.input_size(cfg["model"]), str):
        shapes.append((facts.shape[0], *sides))
    rows = min(cfg["eval_batch_size"], 256)
    for shape in shapes:
        if 4 * rows * math.prod(shape) > room:
            said = " x ".join(map(str, shape))
            raise Refused(f"{run.path}: rows of {said} numbers, {rows} at a time, are more than memory has room for")
    size = cfg["data"].get("size")
    if isinstance(size, int) and len(facts.shape) == 3 and size != min(facts.shape[1:]):
        raise Refused(f"{run.path}: config.yaml has data.size={size}, {FILE} rows of {facts.shape}")


def _without_memory(node: Config, facts: Facts) -> nn.Module:
    """The model on the meta device; a real one of an architecture that computes while it is built."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return models.build(node, out_dim=facts.out_dim, form=facts.form)
    except Refused:
        raise
    except Exception:  # each in its own words
        with torch.random.fork_rng(devices=[]):
            return models.build(node, out_dim=facts.out_dim, form=facts.form)


def _compare(
    run: Run,
    which: str,
    held: dict[str, tuple[str, tuple[int, ...]]],
    own: dict[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    stored = {name: (DTYPES.get(kind), shape) for name, (kind, shape) in held.items()}
    file = run.path / f"{which}.safetensors"
    for name in [*own, *stored]:
        if own.get(name) != stored.get(name):
            here, there = (_spoken(x.get(name)) for x in (own, stored))
            raise Refused(f"{file} does not fit its config: {name} is {there} in the file and {here} by the config")


def _spoken(what: tuple[Any, tuple[int, ...]] | None) -> str:
    if what is None:
        return "absent"
    return f"{str(what[0]).removeprefix('torch.')} {' x '.join(map(str, what[1])) or 'scalar'}"
