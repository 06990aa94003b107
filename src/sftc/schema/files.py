"""YAML files read for their comments and line numbers, which a loaded config no longer has."""

from __future__ import annotations

import re
from functools import cache
from itertools import islice, takewhile
from pathlib import Path

import yaml

from sftc.errors import Refused
from sftc.schema.keys import Keys, Spec
from sftc.schema.rules import parse_rule

_RESERVED = ("defaults", "hydra")  # Hydra's own keys at the top of a file


@cache
def read(file: Path, package: str = "", strict: bool = False) -> Keys:
    """The keys one YAML file declares, below `package`; what its defaults list names is not followed.

    Raises:
        Refused: the file is no YAML, naming its line, or holds no keys.
        ValueError: a comment states no rule and `strict` is on; else it is a remark, and the key takes anything.
    """
    text = file.read_text(encoding="utf-8")
    keys = Keys()
    root = parse(text, file)
    if not isinstance(root, yaml.MappingNode | None):
        raise Refused(f"{file} holds no `key: value` lines")
    if root is not None:
        root.value = [(key, value) for key, value in root.value if key.value not in _RESERVED]
        _collect(root, text.splitlines(), file, f"{package}." if package else "", keys)
    if strict and (silent := next((spec for spec in keys.specs.values() if not spec.stated), None)):
        raise ValueError(f"{file}: the comment beside {silent.path} is no `RULE: description`")
    return keys


def parse(text: str, file: Path) -> yaml.Node | None:
    """The node tree of a YAML text, with line numbers.

    Raises:
        Refused: a syntax error, naming file and line.
    """
    try:
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise Refused(syntax_error(error, file)) from error


def syntax_error(error: yaml.MarkedYAMLError, file: Path | None = None) -> str:
    """One line that says where a YAML is broken."""
    mark = error.problem_mark or error.context_mark
    where = file or (mark.name if mark else "a YAML file")
    return f"{where}, line {mark.line + 1 if mark else '?'}: {error.problem or error.context}"


def first_comment(file: Path) -> str:
    """The first comment of a YAML without its `#`, the package header aside: the command that uses it."""
    head = [line for line in _head(file) if not _is_header(line)]
    return head[0].lstrip("# ").strip() if head and head[0].startswith("#") else ""


def is_global(file: Path) -> bool:
    """Whether a file sets keys all over the config (experiments, debug) instead of declaring its own."""
    return any(line.split()[-1] == "_global_" for line in takewhile(_is_header, _head(file)))


def _head(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [line.strip() for line in islice(lines, 4) if line.strip()]


def _is_header(line: str) -> bool:
    """`# @package ...`, which Hydra only sees above every other line."""
    return re.match(r"#\s*@", line) is not None


def _collect(node: yaml.MappingNode, lines: list[str], file: Path, prefix: str, keys: Keys) -> None:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        comment = _comment(lines, key, value)
        if isinstance(value, yaml.MappingNode) and not comment:
            keys.nodes.add(path)
        else:
            keys.specs[path] = _spec(path, value, comment, file)
        if isinstance(value, yaml.MappingNode):
            _collect(value, lines, file, path + ".", keys)


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    """What stands after `#` on the line where the value ends (where the key stands, for a block below it)."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    empty = isinstance(value, yaml.ScalarNode) and not value.value and not value.style
    end = key.end_mark if block or empty else value.end_mark
    if end.line >= len(lines):
        return ""
    match = re.search(r"(?:^|[\s:])#\s*(.*)$", lines[end.line][end.column :])
    return match[1].strip() if match else ""


def _spec(path: str, value: yaml.Node, comment: str, file: Path) -> Spec:
    rule, _, about = (part.strip() for part in comment.partition(":"))
    try:
        return Spec(path, _written(value), rule, about, file, parse_rule(rule), stated=True)
    except ValueError:
        return Spec(path, _written(value), "any", comment, file)


def _written(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value or "null"
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_written, node.value))}]"
    return "{" + ", ".join(f"{k.value}: {_written(v)}" for k, v in node.value) + "}"
