"""The form of what a run stores beside its tensors: which keys, of which types. Their values are judged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from sftc.errors import Refused

NUMBER = (int, float, NoneType)  # what is not finite is stored as null
METRICS: dict[Any, Any] = {str: NUMBER}
STATES = ("running", "finished", "stopped", "failed", "refused", "unknown")  # of status.json; a sweep adds refused
STATUS = {"state": str}
RESULT = {
    "monitor": str,
    "maximize": bool,
    "val": METRICS,
    "best": {"epoch": int},
    "last": {"epoch": int, "val": METRICS},
    "params": int,
    "seconds": NUMBER,
    "ended": str,
    "model": {str: object},
    "fingerprints": {str: str},
}
MAYBE: dict[str, Any] = {"test": METRICS}  # of a result and of its `last`: there is not always a test split
ORIGIN = {"facts": {str: object}, "loaded": [str]}
SKIPPED = {str: {"of": int, "rows": {str: str}}}
FUSION = {
    "rule": str,
    "options": {str: object},
    "temperature": (int, float),
    "taps": [[str]],
    "members": {str: [str]},
}
REFERENCE = {"path": str, "model": (str, NoneType)}
ENVIRONMENT = {"command": str, "notes": [str]}


def expect(path: Path, value: Any, form: Any, at: str = "") -> None:
    """Hold what a file says against a form: a type or some, `[form of each]`, `{key: form}`, `{str: form of each}`.

    Raises:
        Refused: a key is missing or holds something else, naming file and key.
    """
    if isinstance(form, Mapping):
        if not isinstance(value, Mapping):
            raise _other(path, at, value)
        for key, inner in form.items():
            if key is not str and key not in value:
                raise Refused(f"{path} lacks {_join(at, key)}; it was not written by sftc train, or is damaged")
            for name in value if key is str else (key,):
                expect(path, value[name], inner, _join(at, name))
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise _other(path, at, value)
        for i, one in enumerate(value):
            expect(path, one, form[0], f"{at}[{i}]")
    elif not isinstance(value, form) or (isinstance(value, bool) and form not in (bool, object)):
        raise _other(path, at, value)


def expect_result(path: Path, value: Any) -> None:
    """`expect` for result.json, whose test numbers may be missing. Raises Refused."""
    expect(path, value, RESULT)
    for at, part in (("", value), ("last", value["last"])):
        expect(path, part, {key: form for key, form in MAYBE.items() if key in part}, at)


def _join(at: str, key: Any) -> str:
    return f"{at}.{key}" if at else str(key)


def _other(path: Path, at: str, value: Any) -> Refused:
    return Refused(f"{path}: {at or 'it'} holds {str(value)[:40]!r}, which sftc train does not write")
