"""The rules a value can be held to: `int >= 1 or null`, `0 <= float < 1`, `one of auto, min or int`, `models`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_RANGE = re.compile(rf"(?:({_NUMBER})\s*(<=?)\s*)?(int|float)(?:\s*(<=?|>=?)\s*({_NUMBER}))?")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_TYPES: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "list": list,
    "dict": dict,
    "models": list,  # names of options of the group `model`; the command line puts their nodes in their place
    "changes": list,  # dicts of keys and values, or options of groups: what members of a team have of their own
}


@dataclass(frozen=True, slots=True)
class Form:
    """One way a value may look: a type with bounds, or a list of words."""

    kind: str  # a key of _TYPES, or "null", "any", "choice"
    bounds: tuple[tuple[str, float], ...] = ()
    words: tuple[str, ...] = ()

    def exact(self, value: Any) -> bool:
        """Whether `value` already has this form."""
        match self.kind:
            case "any":
                return True
            case "null":
                return value is None
            case "choice":
                return shown(value) in self.words
            case "models":
                return isinstance(value, list) and all(isinstance(name, str) for name in value)
            case "changes":
                return isinstance(value, list) and all(isinstance(change, dict) for change in value)
            case "int" | "float" if isinstance(value, bool) or (isinstance(value, int | float) and not _finite(value)):
                return False
        return isinstance(value, _TYPES[self.kind]) and all(_COMPARE[op](value, n) for op, n in self.bounds)

    def convert(self, value: Any) -> Any:
        """`value` in the type this form stands for, without loss: `1` for a float, `1e3` for an int."""
        if self.kind == "choice":
            return _typed(shown(value), self.words)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and (self.kind == "str" or (self.kind == "float" and _finite(value))):
            return float(value) if self.kind == "float" else str(value)
        if self.kind == "int" and isinstance(value, float) and value.is_integer():
            return int(value)
        return value


def _finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # neither nan nor inf, nor an integer that no float holds


def shown(value: Any) -> str:
    """A value as a user would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_rule(rule: str) -> tuple[Form, ...]:
    """The forms a rule allows: `int >= 1 or null`, `0 <= float < 1`, `one of auto, min or int`, `fixed`.

    A bound counts for the numbers before it that have none: `int or float > 0` is above zero either way.

    Raises:
        ValueError: no such rule.
    """
    if rule == "fixed":
        return ()
    forms: list[Form] = []
    bounds: tuple[tuple[str, float], ...] = ()
    for part in reversed(rule.split(" or ")):
        part = part.strip()
        if part.startswith("one of "):
            form = Form("choice", words=tuple(word.strip() for word in part[len("one of ") :].split(",")))
        elif match := _RANGE.fullmatch(part):
            bounds = _bounds(match) or bounds
            form = Form(match[3], bounds)
        elif part in _TYPES or part in ("null", "any"):
            form = Form(part)
        else:
            raise ValueError(f"'{part}' is no rule for a key")
        forms.insert(0, form)
    return tuple(forms)


def _bounds(match: re.Match[str]) -> tuple[tuple[str, float], ...]:
    low, low_op, _, op, number = match.groups()
    below = ((low_op.replace("<", ">"), float(low)),) if low else ()
    return below + (((op, float(number)),) if op else ())


def _typed(word: str, words: tuple[str, ...]) -> Any:
    """A word as the YAML means it: `one of auto, true, false` holds bools, `one of 32, 16-mixed` text."""
    if word in ("true", "false"):
        return word == "true"
    return int(word) if all(re.fullmatch(r"[-+]?\d+", each) for each in words) else word
