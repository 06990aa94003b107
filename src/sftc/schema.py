"""What every key may hold, read from the comment beside it: `epochs: 10  # int >= 1: passes over the training rows`.

The YAML is the only place where a key, its default, its type, its range and its meaning are written, so help, checks and
files cannot drift apart. Nothing here imports torch or Hydra: a mistyped value is refused in a tenth of a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import yaml

from sftc.errors import Refused, nearest

MISSING = "???"
_RESERVED = ("defaults", "hydra")  # Hydra's own keys at the top of a file
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
            case "int" | "float" if isinstance(value, bool) or (
                isinstance(value, float) and math.isnan(value)
            ):
                return False
        return isinstance(value, _TYPES[self.kind]) and all(_COMPARE[op](value, n) for op, n in self.bounds)

    def convert(self, value: Any) -> Any:
        """`value` in the type this form stands for: `1` for a float, `1e3` for an int, `true` for a word. Lossless."""
        if self.kind == "choice":
            return _typed(shown(value), self.words)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and self.kind in ("float", "str"):
            return float(value) if self.kind == "float" else str(value)
        if self.kind == "int" and isinstance(value, float) and value.is_integer():
            return int(value)
        return value


@dataclass(frozen=True, slots=True)
class Spec:
    """A key as its YAML declares it."""

    path: str
    default: str  # as written in the file; "" for a mapping or a list in block style
    rule: str  # "int >= 1", "one of a, b or null", "fixed", ...; "any" where the file says nothing
    about: str
    file: Path
    forms: tuple[Form, ...] = (Form("any"),)

    @property
    def fixed(self) -> bool:
        return self.rule == "fixed"

    @property
    def open(self) -> bool:
        """Whether keys may be added to it and taken away."""
        return any(form.kind in ("dict", "any") for form in self.forms)

    def check(self, value: Any) -> Any:
        """`value`, converted to the declared type.

        Raises:
            Refused: it is missing, of another type, out of range, or fixed to something else.
        """
        about = f" ({self.about})" if self.about else ""
        if value == MISSING:
            raise Refused(f"{self.path}=... is missing: {self.rule}{about}")
        if self.fixed:
            if shown(value) == self.default:
                return value
            raise Refused(
                f"{self.path} is fixed to {self.default} here{about}; choose another {_group(self.path)}="
            )
        for form in self.forms:
            if form.exact(value):
                return form.convert(value)
        for form in self.forms:  # second, so that `int or float > 0` keeps 1.0 a share and 1 a number of rows
            if form.exact(other := form.convert(value)):
                return other
        words = [word for form in self.forms for word in form.words]
        given = f"{self.path}={shown(value)}" if value != "" else f"{self.path}= has no value and"
        raise Refused(f"{given} is not {_spoken(self.rule)}{about}{nearest(shown(value), words)}")


@dataclass
class Keys:
    """All keys that some files declare, by dotted path."""

    specs: dict[str, Spec] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)  # mappings that only hold other keys

    def update(self, other: Keys) -> None:
        """Take over `other`'s keys; a file that only sets an inherited key (no comment) keeps what was said about it."""
        for path, spec in other.specs.items():
            known = self.specs.get(path)
            if known is not None and spec.rule == "any" and not spec.about:
                spec = Spec(path, spec.default, known.rule, known.about, spec.file, known.forms)
            self.specs[path] = spec
        self.nodes |= other.nodes

    def names(self) -> list[str]:
        return [*self.specs, *self.nodes]

    def is_free(self, path: str) -> bool:
        """Whether `path` lies inside a key declared `dict` or `any`."""
        parents = path.split(".")[:-1]
        prefixes = (".".join(parents[: i + 1]) for i in range(len(parents)))
        return any(prefix in self.specs and self.specs[prefix].open for prefix in prefixes)

    def unknown(self, config: Mapping[str, Any], prefix: str = "") -> list[str]:
        """Paths in `config` that no file declares: nothing would read them."""
        found = []
        for key, value in config.items():
            path = f"{prefix}{key}"
            if path in self.specs:
                continue
            if path not in self.nodes:
                found.append(path)
            elif isinstance(value, Mapping):
                found += self.unknown(value, path + ".")
        return found

    def removed(self, config: Mapping[str, Any]) -> list[str]:
        """Declared paths that `config` lacks."""
        return [path for path in self.specs if not self.is_free(path) and not _holds(config, path)]

    def check(self, config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """`config` with every value checked and converted.

        Raises:
            Refused: the first value that its key does not allow.
        """
        checked: dict[str, Any] = {}
        for key, value in config.items():
            path = f"{prefix}{key}"
            if path in self.specs:
                value = self.specs[path].check(value)
            elif path in self.nodes and not isinstance(value, Mapping):
                inside = ", ".join(sorted(n for n in self.specs if n.startswith(path + ".")))
                raise Refused(f"{path}={shown(value)}: {path} only holds other keys ({inside})")
            checked[key] = self.check(value, path + ".") if isinstance(value, Mapping) else value
        return checked


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


@cache
def read(file: Path, package: str = "") -> Keys:
    """The keys one YAML file declares, below `package`; what its defaults list names is not followed.

    Raises:
        Refused: the file is no YAML, naming its line.
        ValueError: a comment states no known rule.
    """
    text = file.read_text(encoding="utf-8")
    keys = Keys()
    root = parse(text, file)
    if isinstance(root, yaml.MappingNode):
        root.value = [(key, value) for key, value in root.value if key.value not in _RESERVED]
        _collect(root, text.splitlines(), file, f"{package}." if package else "", keys)
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
    default = _written(value)
    if not comment:
        return Spec(path, default, "any", "", file)
    rule, _, about = (part.strip() for part in comment.partition(":"))
    try:
        return Spec(path, default, rule, about, file, parse_rule(rule))
    except ValueError as error:
        raise ValueError(f"{file}, line {value.start_mark.line + 1}: {error}") from None


def _written(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value or "null"
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_written, node.value))}]"
    return "{" + ", ".join(f"{k.value}: {_written(v)}" for k, v in node.value) + "}"


def _typed(word: str, words: tuple[str, ...]) -> Any:
    """A word as the YAML means it: `one of auto, true, false` holds bools, `one of 32, 16-mixed` only text."""
    if word in ("true", "false"):
        return word == "true"
    return int(word) if all(re.fullmatch(r"[-+]?\d+", each) for each in words) else word


def _holds(config: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return False
        config = config[part]
    return True


def _group(path: str) -> str:
    return path.split(".")[0]


def _spoken(rule: str) -> str:
    first = rule.split(" ")[0]
    return {"int": "an ", "bool": "true or false, a ", "one": "", "any": ""}.get(first, "a ") + rule


def suggest(path: str, names: Iterable[str]) -> str:
    """`"; did you mean 'model.name'?"`: a near path, or one that ends alike (`lr` for `optim.lr`), else nothing."""
    names = list(names)
    last = path.rsplit(".", 1)[-1]
    alike = [name for name in names if name.rsplit(".", 1)[-1] == last and name != path]
    if alike:
        return f"; did you mean {' or '.join(repr(name) for name in sorted(alike)[:3])}?"
    return nearest(path, names, cutoff=0.6)
