"""Settings: the one list of what can be configured, read from the annotated class attributes of a server class.

    max_children: Annotated[int, Setting("most workers at once", group="Pool", at_least=1)] = 5

Owns what a setting is, how its text is read, what values are allowed, alone and together, and the reference that the
README and `--help` print. Holds no value: the class attribute is the only place. Runs in the process that calls
`serve_forever()` or the command line, before anything is bound; imports nothing that takes time.
"""

import math
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .errors import ConfigError

__all__ = ["Field", "Setting", "parse", "reference", "settings", "usable_cpus", "validate"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What an annotated class attribute says about itself. Bounds are in `unit`; `above` is exclusive."""

    help: str
    unit: Literal["", "s", "bytes"] = ""
    group: str = "Pool"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    default_text: str = ""  # what to print for a default that depends on the machine


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of one class: its name, type and default, and what its `Setting` says."""

    name: str
    type: type
    optional: bool  # None is allowed and means off
    default: Any
    setting: Setting

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        return self.setting.default_text or show(self.default, self.setting.unit)

    @property
    def allowed(self) -> str:
        """The allowed values in words, as they end the sentence "it must be …"."""
        words = self._kind()
        if self.setting.above is not None:
            words += f" above {_number(self.setting.above)}"
        if self.setting.at_least is not None:
            words += f", at least {_number(self.setting.at_least)}"
        if self.setting.at_most is not None:
            words += f", at most {_number(self.setting.at_most)}"
        return words + (", or none" if self.optional else "")

    def _kind(self) -> str:
        if self.setting.unit == "s":
            return "a time in seconds"
        if self.setting.unit == "bytes":
            return "a size in bytes"
        return {bool: "yes or no", int: "a whole number", float: "a number"}.get(self.type, "a text")

    def check(self, value: object) -> None:
        """Raise ConfigError unless `value` is of this type and in this range."""
        if value is None and self.optional:
            return
        if not self._is_of_type(value) or not self._in_range(value):
            raise ConfigError(f"could not set {self.name} to {value!r}: it must be {self.allowed}")

    def _is_of_type(self, value: object) -> bool:
        if isinstance(value, bool) or self.type is bool:  # a bool is an int to Python, and a mistake here
            return isinstance(value, bool) and self.type is bool
        if self.type is float:
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, self.type)

    def _in_range(self, value: Any) -> bool:
        s = self.setting
        return (
            (s.above is None or value > s.above)
            and (s.at_least is None or value >= s.at_least)
            and (s.at_most is None or value <= s.at_most)
        )


# --- reading the annotations ----------------------------------------------------------------------


def settings(cls: type) -> Mapping[str, Field]:
    """Every setting of `cls` and its bases, in the order in which they are written, the most basic class first.

    A subclass that sets the attribute changes the default; one that annotates it with another Setting changes the rest.
    """
    found: dict[str, Field] = {}
    for klass in reversed(cls.__mro__):
        for name, hint, setting in _annotated(klass):
            found[name] = Field(name, *_type_of(hint), getattr(cls, name), setting)
    return found


def _annotated(klass: type) -> Iterator[tuple[str, Any, Setting]]:
    for name, hint in vars(klass).get("__annotations__", {}).items():
        if isinstance(hint, str):
            # Only what speaks of a Setting is looked at: other annotations of the user's may name what is not there.
            if "Setting(" not in hint:
                continue
            hint = eval(hint, vars(sys.modules[klass.__module__]), dict(vars(klass)))
        if get_origin(hint) is Annotated:
            for extra in hint.__metadata__:
                if isinstance(extra, Setting):
                    yield name, hint.__origin__, extra


def _type_of(hint: Any) -> tuple[type, bool]:
    """The type under `X | None`, and whether None is allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not types.NoneType)
        return inner, True
    return hint, False


# --- allowed together -----------------------------------------------------------------------------

# (a smaller one, a larger one, whether they may be equal); a setting that is None or absent is not compared
_IN_ORDER = (
    ("min_children", "max_children", True),
    ("min_spare_children", "max_spare_children", True),
    ("min_spare_children", "max_children", True),
    ("max_spare_children", "max_children", True),
    ("slow_request_timeout", "request_timeout", False),
)


def validate(target: object) -> None:
    """Check every setting of a server, or of a server class, alone and together.

    Raises ConfigError: one sentence with the name, the value and what is allowed.
    """
    fields = settings(target if isinstance(target, type) else type(target))
    for name, field in fields.items():
        field.check(getattr(target, name))
    for smaller, larger, may_be_equal in _IN_ORDER:
        if smaller in fields and larger in fields:
            _check_order(target, fields[smaller], fields[larger], may_be_equal)


def _check_order(target: object, smaller: Field, larger: Field, may_be_equal: bool) -> None:
    low, high = getattr(target, smaller.name), getattr(target, larger.name)
    if low is None or high is None or low < high or (low == high and may_be_equal):
        return
    bound = "at most" if may_be_equal else "less than"
    raise ConfigError(f"could not set {smaller.name} to {low}: it must be {bound} {larger.name}, which is {high}")


# --- text -----------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*([a-z]*)\s*", re.IGNORECASE)
_BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
_NONE = {"none", "off"}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "": {"": 1},
    "s": {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400},
    "bytes": {"": 1, "b": 1}
    | {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
    | {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}
_EXAMPLES = {"": "", "s": " (as in 30s, 500ms, 2m, 1h)", "bytes": " (as in 512MiB, 2GiB)"}


def parse(field: Field, text: str) -> Any:
    """The value that `text` means for this setting: `512MiB`, `30s`, `none`, `yes`, or a plain number.

    Raises ConfigError as `validate` does, when it means none or one that is not allowed.
    """
    word = text.strip().lower()
    try:
        value = None if field.optional and word in _NONE else _read(field, text, word)
        field.check(value)
    except (ConfigError, ValueError, KeyError, OverflowError):
        examples = _EXAMPLES[field.setting.unit]
        raise ConfigError(f"could not set {field.name} to {text!r}: it must be {field.allowed}{examples}") from None
    return value


def _read(field: Field, text: str, word: str) -> Any:
    if field.type is bool:
        return _BOOLEANS[word]
    if field.type is str:
        return text
    match = _NUMBER.fullmatch(word)
    if match is None:
        raise ValueError(text)
    number = float(match[1]) * _UNITS[field.setting.unit][match[2]]
    if field.type is float:
        return number
    if not number.is_integer():
        raise ValueError(text)
    return int(match[1]) if not match[2] and match[1].lstrip("+-").isdigit() else int(number)


def show(value: object, unit: str = "") -> str:
    """A value as it may be typed: `off`, `yes`, `30s`, `512MiB`."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _size(value) if unit == "bytes" else _number(value) + unit
    return str(value)


def _number(value: float) -> str:
    return str(value).removesuffix(".0")


def _size(value: float) -> str:
    for suffix, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if value and value % factor == 0:
            return _number(value // factor) + suffix
    return _number(value)


def reference(cls: type) -> str:
    """A Markdown table of every setting of `cls`, group by group: name, default, what is allowed, what it means."""
    fields = settings(cls).values()
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for group in dict.fromkeys(field.setting.group for field in fields):
        lines.append(f"| **{group}** | | | |")
        lines += [
            f"| `{field.name}` | {field.default_text} | {field.allowed} | {field.setting.help} |"
            for field in fields
            if field.setting.group == group
        ]
    return "\n".join(lines) + "\n"


# --- the machine ----------------------------------------------------------------------------------


def usable_cpus() -> int:
    """How many CPUs this process may use: the affinity mask, cut by the CPU quota of its cgroup; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        membership = Path("/proc/self/cgroup").read_text()
    except OSError:
        return affinity
    quota = cgroup_quota(membership, Path("/sys/fs/cgroup"))
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cgroup_quota(membership: str, root: Path) -> float | None:
    """The CPUs that a cgroup (v2, or v1's cpu controller) and everything above it allow; None without a limit.

    `membership` is the text of /proc/self/cgroup (cgroups(7)). In a container the path it gives may lie outside what is
    mounted at `root`; what is missing on the way up limits nothing.
    """
    quotas = []
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        base = root if number == "0" else root / "cpu"
        if number == "0" or "cpu" in controllers.split(","):
            start = base / path.lstrip("/")
            quotas += [_quota_of(folder) for folder in (start, *start.parents) if folder.is_relative_to(base)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
