"""The keys that YAML files declare, and a config held against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftc.errors import Refused, nearest
from sftc.schema.rules import Form, shown

MISSING = "???"  # how a YAML says that a key has no default


@dataclass(frozen=True, slots=True)
class Spec:
    """A key as its YAML declares it."""

    path: str
    default: str  # as written in the file; "" for a mapping or a list in block style
    rule: str  # "int >= 1", "one of a, b or null", "fixed", ...; "any" where the file says nothing
    about: str
    file: Path
    forms: tuple[Form, ...] = (Form("any"),)
    stated: bool = False  # whether the file itself says the rule
    place: str = ""  # what is typed to choose another option of the key's group; of a slot: another one in it
    slot: bool = False  # it holds an option of another group; which one is `default`, or "none"

    @property
    def fixed(self) -> bool:
        return self.rule == "fixed"

    @property
    def open(self) -> bool:
        """Whether keys may be added to it and taken away."""
        return any(form.kind in ("dict", "any") for form in self.forms)

    def as_slot(self, place: str, option: str) -> Spec:
        """This key, held by what `place` chooses: now `option`."""
        rule = f"an option of {place.partition('@')[0]}, or none"
        return replace(self, default=option, rule=rule, forms=(), place=place, slot=True)

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
            place = self.place or self.path.split(".")[0]
            raise Refused(f"{self.path} is fixed to {self.default} here{about}; choose another {place}=")
        if self.slot:
            return self._held(value)
        for form in self.forms:
            if form.exact(value):
                return form.convert(value)
        for form in self.forms:  # second, so that `int or float > 0` keeps 1.0 a share and 1 a number of rows
            if form.exact(other := form.convert(value)):
                return other
        words = [word for form in self.forms for word in form.words]
        given = f"{self.path}={shown(value)}" if value != "" else f"{self.path}= has no value and"
        raise Refused(f"{given} is not {_spoken(self.rule)}{about}{nearest(shown(value), words)}")

    def _held(self, value: Any) -> Any:
        """`value`, which must be an option's node, or null where none was chosen."""
        if isinstance(value, Mapping) if self.default != "none" else value is None:
            return value
        if value is None:
            raise Refused(f"{self.path}=null: take it away by {self.place}=none")
        if isinstance(value, Mapping):
            raise Refused(f"{self.path} has keys, but no option to set them in: choose one, {self.place}=...")
        raise Refused(f"{self.path}={shown(value)}: choose it by {self.place}={shown(value)}")


@dataclass
class Keys:
    """All keys that some files declare, by dotted path."""

    specs: dict[str, Spec] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)  # mappings that only hold other keys

    def update(self, other: Keys) -> None:
        """Take over `other`'s keys; one that is only set again, without a rule, keeps what was said about it."""
        for path, spec in other.specs.items():
            known = self.specs.get(path)
            if known is not None and not spec.stated:
                spec = replace(known, default=spec.default, file=spec.file)
            self.specs[path] = spec
        self.nodes |= other.nodes

    def names(self) -> list[str]:
        return [*self.specs, *self.nodes]

    def chosen_by(self, place: str) -> Keys:
        """The same keys, as those of an option that `place` chooses."""
        return Keys({path: replace(spec, place=place) for path, spec in self.specs.items()}, self.nodes)

    def holds(self, path: str) -> bool:
        """Whether `path` is a key, or lies in a slot, where what is chosen decides."""
        return path in self.specs or any(spec.slot and path.startswith(f"{spec.path}.") for spec in self.specs.values())

    def is_free(self, path: str) -> bool:
        """Whether `path` lies inside a key declared `dict` or `any`."""
        parents = path.split(".")[:-1]
        prefixes = (".".join(parents[: i + 1]) for i in range(len(parents)))
        return any(prefix in self.specs and self.specs[prefix].open for prefix in prefixes)

    def grows(self, path: str) -> bool:
        """Whether `path` is, or lies in, a `dict` that declares no keys of its own: any name is right there."""
        parts = path.split(".")
        for prefix in (".".join(parts[: i + 1]) for i in range(len(parts))):
            spec = self.specs.get(prefix)
            if spec is not None and any(form.kind == "dict" for form in spec.forms):
                return not any(name.startswith(f"{prefix}.") for name in self.names())
        return False

    def unknown(self, config: Mapping[str, Any], prefix: str = "") -> list[str]:
        """Paths in `config` that no file declares: nothing would read them."""
        found = []
        for key, value in config.items():
            path = f"{prefix}{key}"
            if path in self.specs and not (self.specs[path].slot and path in self.nodes):
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


def suggest(path: str, names: Iterable[str]) -> str:
    """`"; did you mean 'optim.lr'?"` for `lr` or `optim.rl`: a path that ends alike, or a near one, or ""."""
    names = list(names)
    last = path.rsplit(".", 1)[-1]
    alike = [name for name in names if name.rsplit(".", 1)[-1] == last and name != path]
    if alike:
        return f"; did you mean {' or '.join(repr(name) for name in sorted(alike)[:3])}?"
    return nearest(path, names, cutoff=0.6)


def _holds(config: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return False
        config = config[part]
    return True


def _spoken(rule: str) -> str:
    first = rule.split(" ")[0]
    article = {"int": "an ", "bool": "true or false, a ", "one": "", "any": ""}.get(first, "a ")
    return article + rule.replace("models", "list of names of models").replace("changes", "list of {key:value}")
