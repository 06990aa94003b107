"""Small real problems and a way to a Lab that does what `sftc train` does, without a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sftc.build.bench import Bench
from sftc.device import Device
from sftc.lab import Lab
from sftc.stop import Stopper

CONF = Path(__file__).resolve().parents[1] / "conf"
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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(overrides))
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    node.pop("hydra", None)
    return node


def lab(out: Path, *overrides: str, stop: Stopper | None = None) -> Lab:
    """A new run on a few digits, or on what the overrides say; an unfinished one there is gone on with."""
    cfg = config(*SMALL, *overrides)
    bench = Bench(Device(**cfg["device"]), stop=stop)
    from sftc.store import Run

    if (out / "config.yaml").is_file():
        return bench.resume(Run.open(out))
    return bench.start(cfg, out, "sftc train", list(overrides))
