"""The settings that a reload cannot change, and the refusal of a reload that would.

Used by the master, which hands the values over, and by a rehearsal, which compares them with its own. Owns nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from ..settings.fields import Field, settings, show

LISTENING = "Listening"  # the group of settings that each listener has for its own


def _fixed(listeners: Mapping[str, object], *holders: object) -> Iterator[tuple[str, Field, Any]]:
    """Yield the settings that a reload cannot change, each under the name that it has in the record."""
    for holder in filter(None, holders):
        for field in settings(type(holder)).values():
            fixed = not field.setting.reloadable or (field.name == "max_children" and _has_places(holder))
            if fixed and field.setting.group != LISTENING:
                yield field.name, field, getattr(holder, field.name)
    for asked, server in listeners.items():
        for field in settings(type(server)).values():
            if not field.setting.reloadable and field.setting.group == LISTENING:
                yield f"{field.name} of {asked}", field, getattr(server, field.name)


def _has_places(holder: object) -> bool:
    """Return whether there is a socket for each of so many workers, none of which can be closed."""
    return getattr(holder, "peer_affinity", False) is True


def fixed_values(listeners: Mapping[str, object], *holders: object) -> dict[str, Any]:
    """Return the settings that a reload cannot change, as values that JSON can hold.

    `listeners`: the server at each address, as it was asked for. `holders`: a server and the command line's own record.
    """
    return {name: value for name, _, value in _fixed(listeners, *holders)}


def refuse_changes(before: Mapping[str, Any], listeners: Mapping[str, object], *holders: object) -> None:
    """Check in a rehearsal that no fixed setting differs from `before`, its values in the running service.

    Raises ConfigError for the first one that does. `listeners` are those that go on: on a new address all may be new.
    """
    for name, field, value in _fixed(listeners, *holders):
        was = before.get(name, value)
        if was != value:
            unit = field.setting.unit
            raise ConfigError(
                f"could not change {field.key} from {show(was, unit)} to {show(value, unit)} by a reload: it needs a "
                "restart"
            )
