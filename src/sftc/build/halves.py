"""strategy.source=auto: what a leader learns before the target, where nobody says."""

from __future__ import annotations

from collections.abc import Callable

from sftc.build import parts
from sftc.build.parts import Config
from sftc.data import Data
from sftc.errors import Refused


def settle(cfg: Config, read: Callable[[Config], Data]) -> tuple[Config, list[str]]:
    """The config with the source chosen, and a note: published weights where the model loads some; else the first half
    of the data's classes, which leaves the other half to be the target.

    Raises:
        Refused: the data has no classes to halve.
    """
    if cfg["strategy"].get("source") != "auto":
        return cfg, []
    data = read(cfg)
    if parts.first_model(cfg, data).loaded:
        return {**cfg, "strategy": {**cfg["strategy"], "source": "pretrained"}}, [
            "source: the model's published weights"
        ]
    names = data.class_names
    if data.kind != "classes" or len(names) < 4:
        raise Refused(
            f"strategy.source=auto: the model loads no weights, and data={data.name} has no four classes to halve; "
            "set strategy.source=RUN, or data such as strategy.source={name:mnist,root:FOLDER}"
        )
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    note = f"source: classes {', '.join(first)}; target: {', '.join(second)} (strategy.source=auto halves data.classes)"
    strategy = {**cfg["strategy"], "source": {"classes": first}}
    return {**cfg, "data": {**cfg["data"], "classes": second}, "strategy": strategy}, [note]
