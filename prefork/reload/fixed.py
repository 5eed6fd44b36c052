"""The settings that a reload cannot change, and the refusal of a reload that would.

Used by the master, which hands the values over, and by a rehearsal, which compares them with its own. Owns nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from ..settings.fields import Field, settings, show


def _fixed(*holders: object) -> Iterator[tuple[Field, Any]]:
    """Yield the settings that a reload cannot change, of a server and of the command line's own record."""
    for holder in filter(None, holders):
        for field in settings(type(holder)).values():
            if not field.setting.reloadable or (field.name == "max_children" and _has_places(holder)):
                yield field, getattr(holder, field.name)


def _has_places(holder: object) -> bool:
    """Return whether there is a socket for each of so many workers, none of which can be closed."""
    return getattr(holder, "peer_affinity", False) is True


def fixed_values(*holders: object) -> dict[str, Any]:
    """Return the settings that a reload cannot change, as values that JSON can hold."""
    return {field.name: value for field, value in _fixed(*holders)}


def refuse_changes(before: Mapping[str, Any], *holders: object, same_listener: bool = True) -> None:
    """Check in a rehearsal that no fixed setting differs from `before`, its values in the running service.

    Raises ConfigError for the first one that does. With `same_listener` False, those of the group "Listening" may.
    """
    for field, value in _fixed(*holders):
        if field.setting.group == "Listening" and not same_listener:
            continue  # on a new address everything may be new
        was = before.get(field.name, value)
        if was != value:
            unit = field.setting.unit
            raise ConfigError(
                f"could not change {field.key} from {show(was, unit)} to {show(value, unit)} by a reload: it needs a "
                "restart"
            )
