"""Which picture size an architecture can read, found by running it on tensors that hold no numbers (the meta device)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused

LEAST = 8  # pixels; below that no picture is left, whatever an architecture would accept


@contextmanager
def dry() -> Iterator[None]:
    """Everything built in here is shapes only: no memory, no arithmetic, no random numbers drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        yield


def fit(
    family: str,
    hub: ModuleType,
    name: str,
    keys: dict[str, Any],
    wanted: str | tuple[int, int],
    data: tuple[int, int],
) -> tuple[int, int]:
    """(height, width) the net `name` shall read.

    `auto` is the data's size raised to what the architecture can read, `min` the smallest it can read; both square
    unless the data's own size fits. A size asked for must fit.

    Raises:
        Refused: the size asked for does not fit, naming one that does.
    """
    works = _runner(hub, name, keys)
    if isinstance(wanted, tuple):
        if wanted[0] == wanted[1] == hub.card(name).size or works(*wanted):
            return wanted
        near = smallest(works, max(wanted), hub.card(name).size)
        raise Refused(f"model.input_size={wanted[0]} is not a size {name} can read; {near} is")
    if wanted == "auto" and data[0] != data[1] and min(data) >= LEAST and works(*data):
        return data
    least = LEAST if wanted == "min" else max(*data, LEAST)
    side = _smallest(family, hub, name, tuple(sorted((k, repr(v)) for k, v in keys.items())), least, works)
    return side, side


_known: dict[tuple[Any, ...], int] = {}


def _smallest(
    family: str,
    hub: ModuleType,
    name: str,
    keys: tuple[Any, ...],
    least: int,
    works: Callable[[int, int], bool],
) -> int:
    key = (family, name, keys, least)
    if key not in _known:  # the jobs of a sweep ask the same again
        _known[key] = smallest(works, least, hub.card(name).size)
    return _known[key]


def smallest(works: Callable[[int, int], bool], least: int, native: int) -> int:
    """The smallest side >= `least` that works: `least` itself, a round number near it, else by halving up to `native`.

    Halving takes for granted that a size above one that works would work too. Where that is not so (windows that must
    divide the picture) it still ends at a size that works, only perhaps not at the smallest.
    """
    for unit in (1, 8, 16, 32):
        side = -(-least // unit) * unit
        if works(side, side):
            return side
    fails, fits = least, max(native, least)
    while not works(fits, fits):  # data larger than the native size
        fails, fits = fits, fits + native
        if fits > 64 * native:
            raise Refused(
                f"no picture size of {least} pixels or more was found that this architecture can read"
            )
    while fits - fails > 1:
        middle = (fails + fits) // 2
        fails, fits = (fails, middle) if works(middle, middle) else (middle, fits)
    return fits


def _runner(hub: ModuleType, name: str, keys: dict[str, Any]) -> Callable[[int, int], bool]:
    @lru_cache
    def net(side: int | None) -> nn.Module:
        return hub.make(name, 2, side, keys).eval()

    fixed = hub.card(name).fixed

    @lru_cache
    def works(height: int, width: int) -> bool:
        if fixed and height != width:
            return False
        try:
            with dry():
                built = net(height if fixed else None)
                # Patches that do not divide the picture would drop its edge without a word.
                return not (fixed and height % _patch(built)) and ends(built, height, width)
        except Refused:
            raise
        except Exception:  # each architecture complains in its own words
            return False

    return works


def ends(net: nn.Module, height: int, width: int) -> bool:
    """Whether `net` turns pictures of this size into one row of logits each."""
    out: Any = net(torch.empty(2, 3, height, width))
    return isinstance(out, Tensor) and out.ndim == 2 and len(out) == 2


def _patch(net: nn.Module) -> int:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return int(module.stride[0]) if tuple(module.stride) == tuple(module.kernel_size) else 1
    return 1
