"""An exception becomes one line and an exit code: what was wrong, what is near it, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from sftc.cli import conf, options, slots
from sftc.cli.teachers import NONE
from sftc.errors import Refused, Stopped, nearest, printable
from sftc.schema import suggest, syntax_error

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
_FIRST_QUOTED = re.compile(r"'([^']*)'")


def code(error: BaseException) -> int:
    """The exit status an error stands for."""
    if isinstance(error, Stopped):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    return REFUSED if isinstance(error, Refused) else FAILED


def line(error: BaseException) -> str:
    """An error of a job in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return f"ended at once ({error.code})"
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, Refused | Stopped) else f"{type(error).__name__}: {text}".removesuffix(": ")


@contextmanager
def refusing(command: str, overrides: list[str], dirs: list[Path]) -> Iterator[None]:
    """What Hydra, OmegaConf or YAML say against a command line becomes a `Refused` that a user understands."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except HydraException as error:
        broken = error.__cause__ or error.__context__
        if isinstance(broken, yaml.MarkedYAMLError):
            raise Refused(syntax_error(broken)) from error
        raise Refused(_composition(error, command, overrides, dirs)) from error
    except yaml.MarkedYAMLError as error:
        raise Refused(syntax_error(error)) from error
    except (OmegaConfBaseException, ValueError) as error:
        raise Refused(_without_option(overrides, dirs) or _first_line(error)) from error


def _composition(error: Exception, command: str, overrides: list[str], dirs: list[Path]) -> str:
    text = str(error)
    if getattr(error, "missing_cfg_file", None):
        return _missing_file(error)
    if (override := getattr(error, "override", None)) is not None:
        return _unparsed(override, text)
    quoted = _FIRST_QUOTED.search(text)
    name = quoted[1] if quoted else ""
    if text.startswith("Could not override"):
        return _unknown(name, command, overrides, dirs)
    if text.startswith("Ambiguous value"):
        key, _, value = name.partition("=")
        return f"{name} is a sweep: add -m, or write '{key}=[{value}]' for a list"
    if text.startswith("Sweep parameters"):
        return f"{name} is a sweep: add -m"
    if "An item is already at" in text:
        return f"'{name}' exists already: write {name}=... without the +"
    if text.startswith("Multiple values for"):
        place = text.split()[3].rstrip(".")
        return f"'{place}' is chosen already: write {place}=... without the +"
    if text.startswith("Could not delete"):
        return text.replace("Could not delete from config. ", "nothing to take away: ")
    cause = error.__cause__
    return _first_line(error) + (f": {_first_line(cause)}" if cause is not None else "")


def _without_option(overrides: list[str], dirs: list[Path]) -> str:
    """What to say of `model=null`, at which Hydra breaks down."""
    for place, _, option in (override.partition("=") for override in overrides):
        group, slot = place.partition("@")[::2]
        if option == "null" and group in conf.groups(dirs):
            return f"{place}=null: {f'write {place}=none' if slot else f'choose an option (sftc ls {group})'}"
    return ""


def _missing_file(error: Exception) -> str:
    group, _, name = str(getattr(error, "missing_cfg_file", "")).removesuffix(".yaml").rpartition("/")
    options = [o for o in getattr(error, "options", None) or () if not o.startswith("_")]
    if group.startswith("hydra/"):
        extra = "; pip install 'sftc[joblib]' brings joblib" if group == "hydra/launcher" else ""
        return f"there is no {group}={name}{nearest(name, options)} (one of: {', '.join(options)}{extra})"
    if not group or not options:
        return f"a config asks for '{group and group + '/'}{name}', which is not there"
    return f"there is no {group}={name}{nearest(name, options)} (one of: {', '.join(options)}; sftc ls {group})"


def _unparsed(override: str, text: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}' needs a value: {override}=..."
    if not value:
        return f"'{key}=' has no value: {key}=null for none, or {key}=''"
    if "=" in value or re.search(r"[:,\[\](){} ]", value):
        return f"cannot read {override}: quote the value, '{key}=\"{value}\"'"
    return f"cannot read {override}: {text.splitlines()[0]}"


def _unknown(key: str, command: str, overrides: list[str], dirs: list[Path]) -> str:
    if "@" in key:
        return slots.no_place(dirs, command, key)
    choices = options.chosen(dirs, command, overrides)
    keys = options.declared(dirs, command, choices)
    place = options.home(key, choices, keys)
    group, option = place.partition("@")[0], choices.get(place, "")
    if place and conf.find(dirs, f"{group}/{option}") is None:
        if option not in ("null", NONE):
            return slots.no_option(dirs, place, option)
        return f"{key}: choose {place}=... first (one of: {', '.join(conf.groups(dirs).get(group, ()))})"
    near = options.elsewhere(dirs, command, key, choices) or suggest(key, [*keys.names(), *choices])
    where = f" with {place}={option}" if place else ""
    return f"there is no key '{key}'{where}{near} (sftc {command} --help lists every key)"


def _first_line(error: BaseException) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[0] if lines else type(error).__name__
