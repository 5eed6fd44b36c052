"""The units of settings: how people write and read their values.

One table with the name, the metavar of an option, examples for error messages, and the functions that parse and format.
Must not hold a setting. Runs wherever fields.py does.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["UNITS", "Unit", "UnitName", "number_text"]

UnitName = Literal["", "s", "bytes", "mode", "address", "directory", "networks"]

_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*([a-z]*)\s*"
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = (
    {"": 1, "b": 1}
    | {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
    | {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
)


class Unit(NamedTuple):
    """A unit. `read` raises ValueError or KeyError for an invalid text, and returns whole numbers as int."""

    words: str  # completes "it must be …"
    metavar: str
    examples: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]


def number_text(value: float) -> str:
    return str(value).removesuffix(".0")


def _number(factors: Mapping[str, float]) -> Callable[[str], int | float]:
    def read(text: str) -> int | float:
        match = re.fullmatch(_NUMBER, text.lower())
        if match is None:
            raise ValueError(text)
        if not match[2] and match[1].lstrip("+-").isdigit():
            return int(match[1])  # exact for any size
        number = float(match[1]) * factors[match[2]]
        return int(number) if number.is_integer() else number

    return read


def _size_text(value: float) -> str:
    for suffix, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if value and value % factor == 0:
            return number_text(value // factor) + suffix
    return number_text(value)


def _mode(text: str) -> int:
    return int(text.lower().removeprefix("0o"), 8)


def _address(text: str) -> Any:
    from ..sockets.addresses import parse_address

    return parse_address(text)


def _networks(text: str) -> str:
    from ..sockets.networks import Networks

    Networks(text)  # raises ValueError, which explains the error itself
    return text


def _address_text(value: Any) -> str:
    from ..sockets.addresses import Address, address_text

    if isinstance(value, Address):
        return value.text
    if isinstance(value, tuple) and all(isinstance(each, Address) for each in value):
        return " ".join(each.text for each in value)
    return address_text(value) if isinstance(value, (tuple, list)) else f"unix:{address_text(value)}"


UNITS: Mapping[str, Unit] = {
    "": Unit("", "", "", _number({"": 1}), number_text),
    "s": Unit(
        "a time in seconds", "TIME", " (as in 30s, 500ms, 2m, 1h)", _number(_SECONDS), lambda v: number_text(v) + "s"
    ),
    "bytes": Unit("a size in bytes", "SIZE", " (as in 512MiB, 2GiB)", _number(_BYTES), _size_text),
    "mode": Unit("an octal mode", "MODE", " (as in 0660)", _mode, lambda value: f"{value:04o}"),
    "address": Unit("an address", "ADDRESS", "", _address, _address_text),
    "networks": Unit("networks with commas", "NETWORKS", " (as in 10.0.0.0/8, ::1, unix)", _networks, str),
    "directory": Unit("an absolute path", "DIRECTORY", "", str, str),
}
