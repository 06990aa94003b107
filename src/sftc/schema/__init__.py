"""What every key may hold, read from the comment beside it: `epochs: 10  # int >= 1: passes over the rows`.

The YAML is the only place where a key, its default, its type, its range and its meaning are written, so help,
checks and files cannot drift apart. Nothing here imports torch or Hydra.
"""

from __future__ import annotations

from sftc.schema.files import first_comment, is_global, parse, read, syntax_error
from sftc.schema.keys import MISSING, Keys, Spec, suggest
from sftc.schema.rules import Form, parse_rule, shown

__all__ = [
    "MISSING",
    "Form",
    "Keys",
    "Spec",
    "first_comment",
    "is_global",
    "parse",
    "parse_rule",
    "read",
    "shown",
    "suggest",
    "syntax_error",
]
