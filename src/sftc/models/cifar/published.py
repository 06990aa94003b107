"""What the field's own code calls the weights, so that the teachers it published load by `model.checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable

# By the start of a net's name: our path -> theirs, applied one after another. Students have no published weights.
RULES = {
    "resnet": [
        (r"^stem\.conv\.", "conv1."),
        (r"^stem\.norm\.", "bn1."),
        (r"\.first\.conv\.", ".conv1."),
        (r"\.first\.norm\.", ".bn1."),
        (r"\.second\.conv\.", ".conv2."),
        (r"\.second\.norm\.", ".bn2."),
        (r"\.shortcut\.conv\.", ".downsample.0."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"^head\.", "fc."),
    ],
    "wrn": [
        (r"^stem\.", "conv1."),
        (r"^layer(\d)\.", r"block\1.layer."),
        (r"\.norm(\d)\.", r".bn\1."),
        (r"\.shortcut\.", ".convShortcut."),
        (r"^last\.0\.", "bn1."),
        (r"^head\.", "fc."),
    ],
    "vgg": [
        (r"^stem\.", "block0."),
        (r"^layer(\d)\.", r"block\1."),
        (r"\.conv1\.", ".0."),
        (r"\.norm1\.", ".1."),
        (r"\.conv2\.", ".3."),
        (r"\.norm2\.", ".4."),
        (r"^head\.", "classifier."),
    ],
}


def aliases(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Their name -> ours, for the `keys` of the state dict of the net `name`; empty where nothing was published."""
    rules = next((found for start, found in RULES.items() if name.startswith(start)), [])
    return {_renamed(key.removeprefix("net."), rules): key for key in keys} if rules else {}


def _renamed(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, theirs in rules:
        key = re.sub(pattern, theirs, key)
    return key
