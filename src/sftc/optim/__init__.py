"""How weights move: which of them (finetune), by which rule (optimizer), how fast (schedule)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sftc.optim.finetuning import Finetune, finetune, plain_groups
from sftc.optim.optimizers import optimizer
from sftc.optim.schedules import Schedule, schedule


def check(optim_spec: Mapping[str, Any], schedule_spec: Mapping[str, Any], finetune_spec: Mapping[str, Any]) -> None:
    """Find what is wrong with the three nodes before any data is read, by two updates of a toy model.

    Raises:
        Refused: unknown names, values out of range, keys that contradict each other.
    """
    finetune(finetune_spec)
    with torch.random.fork_rng(devices=[]):  # a check draws no random number of the caller's
        toy = nn.Linear(4, 4, device="cpu")
    moves = optimizer(optim_spec, plain_groups(toy, optim_spec["lr"], optim_spec["weight_decay"]))
    pace = schedule(schedule_spec, moves, updates_per_epoch=1, epochs=2)
    for update in (1, 2):
        for p in toy.parameters():
            p.grad = torch.ones_like(p)
        moves.step()
        pace.step(update)


__all__ = ["Finetune", "Schedule", "check", "finetune", "optimizer", "plain_groups", "schedule"]
