"""Which losses and metrics a kind of problem has."""

from __future__ import annotations

from typing import Any

from sftc.errors import Refused, choose

MINIMIZED = frozenset({"loss", "nll", "brier", "ece", "mae", "rmse"})


def loss_of(task: Any, kind: str, name: str) -> str:
    """The loss of a class of tasks; `auto` is its first. Raises Refused: it belongs to another kind."""
    options = task.losses
    if name != "auto" and name not in options:
        raise Refused(f"loss={name} does not fit data with {kind}; use loss={' or loss='.join(options)}")
    return options[0] if name == "auto" else name


def monitor_of(task: Any, name: str) -> tuple[str, bool]:
    """The monitor of a class of tasks (`auto` is its first metric), and whether larger is better. Raises Refused."""
    name = choose("monitor", task.metrics[0] if name == "auto" else name, task.metrics)
    return name, name not in MINIMIZED
