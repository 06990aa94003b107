"""How much longer a tokeniser may make a text before it cuts it up.

The JSON of a tokeniser comes with a run that somebody else may have made, and its library aborts the process where
memory ends: a rule that puts a megabyte in place of each letter must be seen before it is used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sftc.errors import Refused

MOST = 512  # times as long; the longest that Unicode's own rules make of a letter is 18
PARTS = 32  # rules one after another
BYTES = 4  # letters that a letter written as its bytes becomes


def check(data: bytes) -> None:
    """Raises Refused: no JSON, or rules that make texts too long."""
    try:
        node = json.loads(data)
        rules = [rule for key in ("normalizer", "pre_tokenizer") for rule in _rules(node.get(key))]
        times = 1.0
        for rule in rules:
            times *= _times(rule)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        said = (str(e).splitlines() or [""])[0][:120]
        raise Refused(f"the tokeniser that the model carries cannot be read ({said})") from None
    if len(rules) > PARTS or times > MOST:
        said = f"{len(rules)} rules, which make a text {times:.3g} times as long ({PARTS} and {MOST} are the most)"
        raise Refused(f"the tokeniser that the model carries has {said}")


def _rules(node: Any) -> Iterator[Mapping[str, Any]]:
    """The rules of a normaliser or of what cuts into words, those of sequences one by one."""
    if node is None:
        return
    inner = [node[key] for key in ("normalizers", "pretokenizers") if key in node]
    if not inner:
        yield node
    for each in (x for listed in inner for x in listed):
        yield from _rules(each)


def _times(rule: Mapping[str, Any]) -> float:
    """The most that one letter becomes by a rule. What the library has by itself (cases, accents) is little."""
    match rule.get("type"):
        case "Replace":
            text = rule["pattern"].get("String")
            if text:
                return max(1.0, len(rule["content"]) / len(text))
            return 1.0 + len(rule["content"])  # an expression may find nothing, beside every letter
        case "Prepend":
            return 1.0 + len(rule["prepend"])
        case "ByteLevel":
            return float(BYTES)
        case "Precompiled":
            return float(max(1, _longest(base64.b64decode(rule["precompiled_charsmap"]))))
    return 1.0


def _longest(charsmap: bytes) -> int:
    """Of what stands in a table of sentencepiece: the size of its tree, the tree, and texts that end with a 0."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(map(len, texts.split(b"\0")))
