"""Start a run in a process of its own, kill it at a random moment, start it again, until it is finished."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

from problems import SMALL, config
from sftc import build
from sftc.errors import Stopped
from sftc.store import Run

CASES = {
    "plain": ("model=simple_cnn", "model.dropout=0.2"),
    "all at once": ("model=simple_cnn", "micro_batch_size=10", "ema=0.9", "data.augment.mixup=0.2", "clip=1"),
    "bf16": ("model=simple_cnn", "model.dropout=0.2", "device.precision=bf16-mixed"),
}
LONG = ("data.limit=400", "epochs=4", "checkpoint.steps=5", "data.eval_limit=64")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@cache
def _config(case: str) -> dict[str, Any]:
    return config(*SMALL, *CASES[case], *LONG)


def start(out: Path, case: str) -> int:
    """Fork a process that trains in `out`, or goes on there; its exit status is the command's."""
    overrides = [*CASES[case], *LONG]
    cfg = _config(case) | {"resume": "auto", "out": str(out)}
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        build.check(cfg)
        build.train(cfg, out, overrides, "sftc train ...")
        code = 0
    except Stopped as e:
        code = e.code
    except SystemExit as e:
        code = int(e.code or 0)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit status as a shell shows it."""
    status = os.waitpid(pid, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def until_finished(out: Path, case: str, seed: int, kills: int, longest: float) -> list[int]:
    """Kill `kills` times at moments drawn from `seed`, then let it end. Returns every exit status."""
    draw, codes = random.Random(seed), []
    for _ in range(kills):
        pid = start(out, case)
        time.sleep(draw.uniform(0, longest))
        os.kill(pid, draw.choice(SIGNALS))
        codes.append(wait(pid))
        if (out / "status.json").is_file() and Run(out).finished:
            return codes
    codes.append(wait(start(out, case)))
    return codes
