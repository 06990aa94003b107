"""The kinds of problem: what a loss is, what a score is, what is counted. Dense targets use the same classes.

Shapes: N rows, C outputs, `*positions` empty for one answer per row. Unlabelled is a property of the target: -1 for
classes, NaN for labels and values.
"""

from typing import Any

from sftc.tasks.classes import Classification, Segmentation, Tagging
from sftc.tasks.fitting import loss_of, monitor_of
from sftc.tasks.labels import MultiLabel
from sftc.tasks.values import Regression, check_quantiles

TASKS: dict[str, Any] = {
    "classes": Classification,
    "labels": MultiLabel,
    "values": Regression,
    "tags": Tagging,
    "pixels": Segmentation,
}


def fitting_loss(name: str, kind: str) -> str:
    """The loss of a kind of data; `auto` is its first. Raises Refused: it belongs to another kind."""
    return loss_of(TASKS[kind], kind, name)


def fitting_monitor(name: str, kind: str) -> tuple[str, bool]:
    """The monitor of a kind of data (`auto` is its first metric), and whether larger is better. Raises Refused."""
    return monitor_of(TASKS[kind], name)


__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "Tagging",
    "check_quantiles",
    "fitting_loss",
    "fitting_monitor",
]
