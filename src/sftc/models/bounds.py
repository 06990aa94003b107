"""A limit on what a model may become while it is built: a config can ask for more than any machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module

from sftc.errors import Refused

LARGEST = 100_000  # of a keyword that is a whole number: width, depth, number of classes
LONGEST = 64  # of a keyword that is a list: a number per stage


@contextlib.contextmanager
def no_more_than(tensors: int, elements: int, what: str) -> Iterator[None]:
    """Refuse a model as soon as it has more weights than that; none of them has been written to by then.

    Args:
        tensors, elements: of parameters and buffers, counted over all that is built inside the block.
        what: the limit in words, for the message.
    """
    left = [tensors, elements]

    def count(_owner: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None:
            left[0] -= 1
            left[1] -= value.numel()
        if min(left) < 0:
            raise Refused(f"the config describes a model with more weights than {what} (at a {name})")

    hooks = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_keywords(node: Mapping[str, Any], path: str = "model") -> None:
    """Keywords that go to somebody else's builder: numbers and words of a believable size, no nodes in nodes.

    Raises:
        Refused: the key.
    """
    for key, value in node.items():
        if key.startswith("_"):
            raise Refused(f"{path}.{key} is no keyword of a model")
        listed = value if isinstance(value, list) else [value]
        if len(listed) > LONGEST or not all(map(_believable, listed)):
            raise Refused(f"{path}.{key}={str(value)[:40]} is no setting of a model")


def _believable(value: Any) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= LARGEST
    return value is None or (isinstance(value, str) and len(value) <= 100)
