"""Tables of a file that say what a pool serves beside its first target: `[[prefork.also]]`.

    [[prefork.also]]
    target = "dns:OverTcp"                       # default: the service's own
    bind = ["127.0.0.1:53", "[::1]:53"]
    allowed_clients = "10.0.0.0/8"               # a setting of these listeners

Runs in the process of the command line, before anything is imported or bound. Must not build a server.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError
from .fields import Field
from .other_servers import called_here
from .sources import ALSO, Found, value_in_file

# Groups of settings that are a listener's own. All others are the pool's.
OF_A_LISTENER = ("Listening", "Sockets", "TLS", "Admission")
OWN = ("target", "bind")
OF_KEPT = "Kept connections"  # settings of the pool, for those of its servers that keep any


class Also(NamedTuple):
    """One of these tables: its values by field name, with their sources; `target` and `bind` are among them."""

    found: Mapping[str, Found]

    def value(self, name: str) -> Any:
        return self.found[name].value if name in self.found else None


def is_of_a_listener(field: Field) -> bool:
    """Return True for a setting that each listener may have for its own."""
    return field.setting.group in OF_A_LISTENER


def is_of_some(field: Field) -> bool:
    """Return True for a setting that may be of some listeners only: one of its own, or of kept connections."""
    return is_of_a_listener(field) or field.setting.group == OF_KEPT


def also(fields: Mapping[str, Field], tables: object, path: str) -> tuple[Also, ...]:
    """Return what these tables of the file say. Raises ConfigError for the first mistake."""
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigError(f"could not use {path}: {ALSO} must be tables, each under [[prefork.{ALSO}]]")
    return tuple(Also(dict(_values(fields, each, f"{path}: {ALSO} {n}"))) for n, each in enumerate(tables, 1))


def _values(fields: Mapping[str, Field], table: Mapping[str, Any], where: str) -> Iterator[tuple[str, Found]]:
    known = {field.key: field for field in fields.values()}
    allowed = [key for key, field in known.items() if key in OWN or is_of_a_listener(field)]
    for key, value in table.items():
        if key in known and key not in allowed:
            raise ConfigError(f"could not use {where}: {key} is a setting of the pool, which stands in [prefork]")
        if key not in known:
            raise ConfigError(f"could not use {where}: there is no setting {key}{called_here(key, known, allowed)}")
        origin = f"{where}: {key}"
        yield known[key].name, Found(value_in_file(known[key], value, origin), "file", origin)
    if not table.keys() & {*OWN}:
        raise ConfigError(f"could not use {where}: it says neither target nor bind")
