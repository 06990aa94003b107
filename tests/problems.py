"""Small real problems and a way to a Lab that does what `sftc train` does, without a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sftc import models
from sftc.build import parts
from sftc.build.bench import Bench
from sftc.cli import compose, conf
from sftc.device import Device
from sftc.errors import Stopped
from sftc.lab import Lab, Watch
from sftc.stop import Stopper
from sftc.store import Run
from sftc.strategies.plain import Plain

SMALL = (
    "device=cpu",
    "device.threads=1",
    "data.limit=96",
    "epochs=2",
    "batch_size=32",
    "quiet=true",
    "model=mlp",
    "data.workers=0",
)


def config(*overrides: str, command: str = "train") -> dict[str, Any]:
    """What the command line hands to build, for these overrides."""
    return compose.check_all(command, list(overrides), [conf.conf_dir()], sweep=False).values


def cifar(name: str, out_dim: int = 100, shape: tuple[int, ...] = (3, 32, 32), **keys: Any) -> models.Vision:
    """A net of `model=cifar`."""
    return models.build({"family": "cifar", "name": name, **keys}, out_dim=out_dim, form=shape)


def stirred(model: nn.Module) -> Any:
    """`model` in eval mode, with norms that do something: fresh ones divide by 1 and add 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def lab(out: Path, *overrides: str, stop: Stopper | None = None, watch: Watch | None = None) -> Lab:
    """A new run on a few digits, or on what the overrides say; an unfinished one there is gone on with."""
    if (out / "config.yaml").is_file():
        run = Run.open(out)
        return Bench(Device(**run.config["device"]), watch, stop).resume(run)
    cfg = config(*SMALL, *overrides)
    return Bench(Device(**cfg["device"]), watch, stop).start(cfg, out, "sftc train", list(overrides))


def plain(out: Path, *overrides: str, stop: Stopper | None = None, watch: Watch | None = None) -> Run:
    """The run in `out`, trained by the plain strategy, or gone on with."""
    home = lab(out, *overrides, stop=stop, watch=watch)
    Plain().run(home)
    return home.run


def told(out: Path, *overrides: str, stop: Stopper | None = None) -> Run:
    """The run in `out`, whose strategy told its story, or goes on with it."""
    home = lab(out, *overrides, stop=stop)
    parts.strategy(home.run.config).run(home)
    return home.run


class After(Stopper):
    """A stop flag that rises after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def __call__(self) -> Stopped | None:
        self.left -= 1
        return Stopped("enough", 143) if self.left == 0 else None


def untimed(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl without what two equal runs may differ in."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]


def same(a: Run, b: Run) -> bool:
    """Whether two runs agree in every bit of their best and last weights, and in all they logged."""
    for which in ("model", "last"):
        one, two = a.weights(which), b.weights(which)
        if one.keys() != two.keys() or not all(torch.equal(one[k], two[k]) for k in one):
            return False
    return len(untimed(a)) > 0 and untimed(a) == untimed(b)
