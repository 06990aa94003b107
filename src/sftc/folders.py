"""When a folder is free for a new run: nothing is in it, or only what a run leaves that was killed while starting."""

from __future__ import annotations

from pathlib import Path

# Written before config.yaml, which makes a folder a run.
BEFORE_CONFIG = (".lock", "rows.safetensors", "data.json", "environment.json")


def free(folder: Path) -> bool:
    """Whether a run may be started in an existing folder."""
    names = [p.name for p in folder.iterdir()]
    return all(n in BEFORE_CONFIG or (n.startswith(".") and n.endswith(".tmp")) for n in names)
