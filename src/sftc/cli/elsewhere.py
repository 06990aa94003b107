"""`sftc eval run=RUN data.root=OTHER`: keys of data without a word which are said of the run's own."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from sftc.cli import conf


def named(dirs: list[Path], overrides: list[str]) -> list[str]:
    """The overrides of `sftc eval`, with `data=` as the run has it where only keys of it are given.

    As they are where nothing is said of data, or the run does not say; it is refused elsewhere then.
    """
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    run = next((word.partition("=")[2] for word in overrides if word.startswith("run=")), None)
    if run is None or "data" in keys or not any(key.startswith("data.") for key in keys):
        return overrides
    try:
        node = yaml.safe_load((Path(os.path.expanduser(run)) / "config.yaml").read_text(encoding="utf-8"))
        name = str(node["data"]["name"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return overrides
    return [f"data={name}", *overrides] if name in conf.groups(dirs)["data"] else overrides
