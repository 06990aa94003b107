"""scripts/story.py RUN... : finished runs in one table, a line each."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.table import Table

from sftc import report
from sftc.store import Run


def main(paths: list[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("val accuracy", "val NLL", "test accuracy", "test NLL", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for path in paths:
        result = Run.open(path).result
        cells = [f"{result[split][metric]:.4f}" for split in ("val", "test") for metric in ("accuracy", "nll")]
        table.add_row(Path(path).name, *cells, f"{result['params']:,}")
    report.show(table)


if __name__ == "__main__":
    main(sys.argv[1:])
