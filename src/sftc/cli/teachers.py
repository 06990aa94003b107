"""The usual teacher of a student: what conf/train.yaml asks for by `${usual_teacher:${strategy},${model}}`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sftc import schema
from sftc.cli import conf

NONE = "none"  # of no group an option: Hydra leaves out an optional entry that it does not find
_TABLE = "model/_teachers.yaml"


def usual(dirs: list[Path], strategy: str, model: str) -> str:
    """The option that `strategy` takes as teacher of `model`, or "none".

    An option that the table does not name has the teacher of the nearest one it inherits from.
    """
    if not any("teacher" in schema.read(file).specs for _, file in conf.lineage(dirs, "strategy", strategy)):
        return NONE
    table: dict[str, str] = {}
    for directory in dirs:  # the user's own directory comes last
        if (file := directory / _TABLE).is_file():
            table |= {student: spec.default for student, spec in schema.read(file).specs.items()}
    names = [model, *(name for name, _ in reversed(list(conf.lineage(dirs, "model", model))))]
    return next((table[name] for name in names if name in table), NONE)


def usual_rule(dirs: list[Path], strategy: str) -> str:
    """The option of `fuse` a strategy starts from: what belongs to its members, if it fuses at all."""
    fuses = any("fuse" in schema.read(file).specs for _, file in conf.lineage(dirs, "strategy", strategy))
    return "auto" if fuses else NONE


RESOLVERS = {"usual_teacher": usual, "usual_fuse": usual_rule}


def register(dirs: list[Path]) -> None:
    """Let Hydra know them, for files from `dirs`. Before anything is composed; a worker of a sweep inherits it."""
    from omegaconf import OmegaConf

    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, partial(resolver, dirs), replace=True)
