"""Rows that cannot be read, under data.on_error=skip: counted, named, and never more than half of a split."""

from __future__ import annotations

from typing import Any

from sftc.errors import Refused

Lost = dict[int, tuple[str, str]]  # row number -> (path, why it cannot be read)
REMEDY = "repair or remove it, or set data.on_error=skip"


class Skips:
    """What was skipped of one split.

    Args:
        split: its name.
        total: its rows.
    """

    def __init__(self, split: str, total: int) -> None:
        self.split, self.total = split, total
        self.found: Lost = {}

    def add(self, lost: Lost) -> None:
        """Raises Refused: that makes more than half of the split, and is no accident any more."""
        self.found.update(lost)
        if 2 * len(self.found) > self.total:
            path, why = self.found[min(self.found)]
            raise Refused(
                f"data.on_error=skip: {len(self.found):,} of {self.total:,} rows of {self.split} cannot be read, "
                f"more than half; the first is {path} ({why}): look at data.root"
            )

    def plain(self) -> dict[str, Any]:
        """{"of": rows of the split, "rows": {path: why}}, in the order of the rows."""
        return {"of": self.total, "rows": dict(self.found[row] for row in sorted(self.found))}
