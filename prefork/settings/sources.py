"""The sources of settings besides the class: option over variable over file. Each value keeps its source.

Owns the reading of the environment and of the TOML file, and the errors for unknown names. Must not interpret a value,
which fields.py does. Runs in the process of the command line, before anything is imported or bound.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError, reason_of
from .fields import Field, parse, show
from .other_servers import called_here

__all__ = ["ALSO", "CTL_VARIABLE", "FILE_VARIABLE", "SLOT_VARIABLE", "URL_VARIABLE", "Found", "gather", "value_in_file"]

PREFIX = "PREFORK_"
FILE_VARIABLE = "PREFORK_CONFIG"
CTL_VARIABLE = "PREFORK_CTL"  # no setting: the control socket that `prefork ctl` and `top` ask, of whatever service
URL_VARIABLE = "PREFORK_URL"  # no setting: the metrics that `prefork top` asks, of whatever service
SLOT_VARIABLE = "PREFORK_SLOT"  # no setting: set in a worker, for what that starts, such as another service
TOML_TABLE = "prefork"
ALSO = "also"  # the key of what stands in tables of its own, see also.py
# The words of a variable that names several addresses; a path may have a space in it.
_WORDS = r"\s+(?=[^\s/]*:|systemd\b)"
NO_SETTINGS = (FILE_VARIABLE, CTL_VARIABLE, URL_VARIABLE, SLOT_VARIABLE)

# Variables that Kubernetes sets in every pod of a namespace with a Service whose name begins with prefork, and Docker
# for links: PREFORK_SERVICE_HOST, PREFORK_PORT=tcp://…, PREFORK_METRICS_PORT_9465_TCP_ADDR. No setting may have such a
# name.
FROM_A_SERVICE = r"PREFORK_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"


class Found(NamedTuple):
    """A value and its source: `kind` in one word, `origin` by name."""

    value: Any
    kind: str  # option, variable, file
    origin: str


def gather(
    fields: Mapping[str, Field], options: Mapping[str, str | list[str]], environ: Mapping[str, str], path: str | None
) -> dict[str, Found]:
    """Return the value of every field that any source sets, by field name. Overridden sources are checked as well.

    `options` are texts by field name, several of an option that was given again; `path` is the file. Raises ConfigError
    for the first mistake.
    """
    found: dict[str, Found] = {}
    for source in (_from_file(fields, path), _from_environment(fields, environ), _from_options(fields, options)):
        found.update(source)
    return found


def _from_options(fields: Mapping[str, Field], options: Mapping[str, str | list[str]]) -> Iterator[tuple[str, Found]]:
    for name, text in options.items():
        option = fields[name].option
        yield name, Found(_parsed(fields[name], text, option), "option", option)


def _parsed(field: Field, text: str | list[str], origin: str) -> Any:
    """Return the value of a text, or the values of several, in their order."""
    if isinstance(text, str):
        return parse(field, text, origin)
    values = [parse(field, each, origin) for each in text]
    if None not in values:
        return tuple(each for some in values for each in some)
    if len(values) == 1:
        return None
    raise ConfigError(f"could not set {field.key} to off (from {origin}): there are addresses beside it")


def _from_environment(fields: Mapping[str, Field], environ: Mapping[str, str]) -> Iterator[tuple[str, Found]]:
    known = {field.variable: field for field in fields.values()}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or not text:  # empty counts as unset, as a unit file needs it
            continue
        if variable in known:
            field = known[variable]
            words = re.split(_WORDS, text.strip()) if field.setting.several else text
            yield field.name, Found(_parsed(field, words, variable), "variable", variable)
        elif variable not in NO_SETTINGS and not re.fullmatch(FROM_A_SERVICE, variable):
            near = called_here(variable, [*known, FILE_VARIABLE])
            raise ConfigError(f"could not use the variable {variable}: there is no such setting{near}")


def _from_file(fields: Mapping[str, Field], path: str | None) -> Iterator[tuple[str, Found]]:
    if path is None:
        return
    known = {field.key: field for field in fields.values()}
    for key, value in read_table(path).items():
        if key == ALSO:
            continue
        if key not in known:
            raise ConfigError(f"could not use {path}: there is no setting {key}{called_here(key, known)}")
        field, origin = known[key], f"{path}: {key}"
        yield field.name, Found(value_in_file(field, value, origin), "file", origin)


def value_in_file(field: Field, value: Any, origin: str) -> Any:
    """Return the value of a TOML key. Strings are parsed as text ("30s", "off"); other types are values already."""
    if isinstance(value, str):
        return parse(field, value, origin)
    if isinstance(value, list) and value and field.setting.several and all(isinstance(each, str) for each in value):
        return _parsed(field, value, origin)
    if isinstance(value, list) and field.setting.several:
        raise ConfigError(f"could not set {field.key} to {value!r} (from {origin}): it must be addresses, as texts")
    if isinstance(value, list) and field.setting.unit == "address":
        raise ConfigError(f"could not set {field.key} to {value!r} (from {origin}): it must be one address")
    if field.type is float and type(value) is int:
        value = float(value)
    if field.setting.unit == "address":
        text = show(value) if isinstance(value, bool) else str(value)
        return parse(field, text, origin)
    field.check(value, origin)
    return value


def read_table(path: str) -> dict[str, Any]:
    """Return the table of prefork's settings in the file. Raises ConfigError."""
    import tomllib  # only needed with a file

    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"could not read {path}: {reason_of(exc)}") from None
    except ValueError as exc:  # invalid TOML or UTF-8
        reason = str(exc)[:1].lower() + str(exc)[1:]
        raise ConfigError(f"could not read {path}: it is not TOML: {reason}") from None
    table = tables.get(TOML_TABLE)
    if not isinstance(table, dict):
        raise ConfigError(f"could not use {path}: it has no table [{TOML_TABLE}], which is where settings stand")
    return table
