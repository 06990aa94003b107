"""What a member of a team may have of its own: groups by their option, or their keys; and keys of how it learns.

What members share is not here: the data, the device, what is monitored.
"""

from __future__ import annotations

GROUPS = ("model", "optim", "schedule", "finetune", "loss")
KEYS = (
    *("seed", "epochs", "max_steps", "batch_size", "micro_batch_size", "clip", "ema", "patience", "target"),
    *("penalty.l1", "penalty.l2_sp"),
)
TOP = {*GROUPS, *(key.partition(".")[0] for key in KEYS)}  # of a member's config
