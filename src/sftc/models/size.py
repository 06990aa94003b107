"""Which picture size an architecture can read, found by running it without numbers (on the meta device)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused

LEAST = 8  # pixels; below that no picture is left, whatever an architecture would accept
Works = Callable[[int, int], bool]  # height, width

_found: dict[tuple[Any, ...], int] = {}  # the jobs of a sweep ask the same again


def shapes_only(source: ModuleType, name: str, side: int | None, keywords: dict[str, Any]) -> nn.Module:
    """The net without memory or arithmetic, in eval mode; no random number of the caller's is drawn."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return source.make(name, 2, side, keywords).eval()
        except Refused:
            raise
        except Exception:  # an architecture that computes while it is built
            return source.make(name, 2, side, keywords).eval()


def fit(
    source: ModuleType,
    name: str,
    keywords: dict[str, Any],
    wanted: str | tuple[int, int],
    data: tuple[int, int],
) -> tuple[int, int]:
    """(height, width) the net `name` shall read.

    `auto` is the data's size raised to what the architecture can read, `min` the smallest it can read; both
    are square unless the data's own size fits. A size asked for must fit.

    Raises:
        Refused: the size asked for does not fit, naming one that does.
    """
    works, native = _trial(source, name, keywords), source.card(name).size
    if isinstance(wanted, tuple):
        if wanted == (native, native) or works(*wanted):
            return wanted
        near = smallest(works, max(wanted), native)
        raise Refused(f"model.input_size={wanted[0]} is not a size {name} can read; {near} is")
    if wanted == "auto" and data[0] != data[1] and min(data) >= LEAST and works(*data):
        return data
    least = LEAST if wanted == "min" else max(*data, LEAST)
    key = (source.__name__, name, repr(sorted(keywords.items())), least)
    if key not in _found:
        _found[key] = smallest(works, least, native)
    return _found[key], _found[key]


def smallest(works: Works, least: int, native: int) -> int:
    """The smallest side >= `least` that works: `least`, a round number near it, else by halving.

    Halving takes for granted that a size above one that works would work too. Where that is not so (windows
    that must divide the picture) it still ends at a size that works, only perhaps not at the smallest.

    Raises:
        Refused: nothing works.
    """
    for unit in (1, 8, 14, 16, 32):  # 14: the patches of the largest transformers
        side = -(-least // unit) * unit
        if works(side, side):
            return side
    fails, fits = least, max(native, -(-least // native) * native)
    if not works(fits, fits):
        raise Refused(f"no picture size of {least} pixels or more was found that this architecture can read")
    while fits - fails > 1:
        middle = (fails + fits) // 2
        fails, fits = (fails, middle) if works(middle, middle) else (middle, fits)
    return fits


def _trial(source: ModuleType, name: str, keywords: dict[str, Any]) -> Works:
    fixed = source.card(name).fixed
    net = lru_cache(lambda side: shapes_only(source, name, side, keywords))

    @lru_cache
    def works(height: int, width: int) -> bool:
        if fixed and height != width:
            return False
        try:
            built = net(height if fixed else None)
            # Patches that do not divide the picture would drop its edge without a word.
            return not (fixed and height % _patch(built)) and _answers(built, height, width)
        except Refused:
            raise
        except Exception:  # each architecture complains in its own words
            return False

    return works


@torch.no_grad()
def _answers(net: nn.Module, height: int, width: int) -> bool:
    pictures = torch.zeros(2, 3, height, width, device=next(net.parameters()).device)
    out: Any = net(pictures)
    return isinstance(out, Tensor) and out.ndim == 2 and len(out) == 2


def _patch(net: nn.Module) -> int:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return int(module.stride[0]) if tuple(module.stride) == tuple(module.kernel_size) else 1
    return 1
