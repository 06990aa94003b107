"""A sweep: its folder, and a table of how every job ended, read from status.json: any launcher will do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftc.cli import folder
from sftc.cli.line import Line
from sftc.errors import Refused


@contextmanager
def place(line: Line) -> Iterator[Path]:
    """The folder of a sweep, `out=` taken out of the line: each job gets a numbered folder inside.

    Raises:
        Refused: `out=` names many folders, or one that holds something; or `resume=` is given.
    """
    if line.value("resume") is not None:
        raise Refused("resume= goes on with one run; leave out -m")
    given = line.value("hydra.sweep.dir")
    if given is not None:
        yield Path(given)
        return
    out = line.value("out")
    line.overrides = [o for o in line.overrides if not o.startswith("out=")]
    if out in (None, "null"):
        with folder.reserved("sweep") as path:
            yield path
    elif "," in out:
        raise Refused("out= names the folder of the whole sweep: give one, its jobs are numbered inside")
    else:
        yield folder.free(Path(out.strip("'\"")).expanduser())


def report(path: Path, planned: int) -> int:
    """Print the table of a sweep of `planned` jobs and return its exit code: 1 if one failed or never started."""
    jobs = sorted((p for p in path.glob("*") if p.is_dir()), key=lambda p: (len(p.name), p.name))
    if not jobs:
        return 0
    ends = [_end(job) for job in jobs]
    rows = [("job", "overrides", "state", "metric", "error"), *(row for row, _ in ends)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    failed = sum(code != 0 for _, code in ends)
    missing = max(0, planned - len(jobs))
    print(f"\nsweep {path}: {len(jobs)} jobs, {failed} failed" + (f", {missing} never started" if missing else ""))
    for row in rows:
        print("  " + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip())
    return 1 if failed or missing else 0


def _end(job: Path) -> tuple[tuple[str, ...], int]:
    try:
        status: dict[str, Any] = json.loads((job / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {"state": "lost", "error": "the job left no status.json"}
    value = status.get("value")
    metric = f"{value:.4f}" if isinstance(value, int | float) else ""
    error = " ".join(str(status.get("error") or "").split())
    row = (job.name, " ".join(status.get("overrides", [])), str(status.get("state")), metric, error)
    return row, status.get("code", 1)
