"""Companions, as a program declares them: functions that run once for the whole service, beside its workers.

    companions = {"indexer": run_indexer, "cleanup": every(3600, tidy, timeout=600)}

Owns the declaration and its checks. Runs in the process that calls `serve_forever()`, before anything is forked, and in
a rehearsal. Must not start anything.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError
from .handlers import why_not_run

__all__ = ["CompanionFunction", "Declared", "Every", "declared", "every", "refuse_without_pool"]

LEAST_S, MOST_S = 0.01, 1e9  # of an interval and a timeout
COMPANION_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?"

CompanionFunction = Callable[[Any], object]


class Every(NamedTuple):
    """A periodic job, as `every()` returns it."""

    seconds: float
    function: CompanionFunction
    timeout: float | None = None


class Declared(NamedTuple):
    """A companion as a program declares it. `interval` and `timeout`, in seconds, are those of a periodic job."""

    name: str
    function: CompanionFunction
    interval: float | None = None
    timeout: float | None = None


def every(seconds: float, function: CompanionFunction, *, timeout: float | None = None) -> Every:
    """Declare a companion that calls `function(server)` every so many seconds, one call at a time.

    The first call comes when the service has started; a reload or a crash of the companion does not move the others. A
    call that takes longer than the interval is followed by the next one that is due. What it raises is logged and
    counted. A call that takes longer than `timeout` seconds is ended with its process, as a request over
    `request_timeout` is: its stacks are logged, it counts as `timeout`, and the schedule goes on in a new process.
    """
    return Every(seconds, function, timeout)


def declared(server: Any) -> tuple[Declared, ...]:
    """Return the companions of a server or a server class. Raises ConfigError."""
    found = getattr(server, "companions", None) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"could not set companions to {found!r:.80}: it must map names to functions")
    return tuple(_one(name, value) for name, value in found.items())


def refuse_without_pool(server: Any) -> None:
    """Raise ConfigError if this server, which has no pool, declares companions."""
    found = getattr(server, "companions", None)
    if (
        isinstance(found, Mapping)
        and found
        and all(isinstance(each, Every) or callable(each) for each in found.values())
    ):
        names = ", ".join(map(str, found))
        raise ConfigError(f"could not start the companions {names}: they need a pool; put PreForkingMixIn first")


def _one(name: object, value: object) -> Declared:
    if not isinstance(name, str) or not re.fullmatch(COMPANION_NAME, name):
        raise ConfigError(
            f"could not use {name!r:.80} as the name of a companion: it must be 1 to 63 letters, digits, _, . and -"
        )
    function = value.function if isinstance(value, Every) else value
    if isinstance(value, Every):
        _check_seconds(f"the interval of companion {name}", value.seconds)
        if value.timeout is not None:
            _check_seconds(f"the timeout of companion {name}", value.timeout)
    if (why_not := _why_not(function)) is not None:
        raise ConfigError(f"could not set companion {name} to {function!r:.80}: {why_not}")
    found = Declared(name, function)  # type: ignore[arg-type]  # it is callable
    return found._replace(interval=value.seconds, timeout=value.timeout) if isinstance(value, Every) else found


def _check_seconds(what: str, seconds: object) -> None:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not LEAST_S <= seconds <= MOST_S:  # type: ignore[operator]
        raise ConfigError(f"could not set {what} to {seconds!r}: it must be a number of seconds, at least {LEAST_S:g}")


def _why_not(function: object) -> str | None:
    """Return why this cannot be a companion's function, in one sentence; None if it can."""
    if isinstance(function, Every):
        return "it is a periodic job within another"
    if not callable(function):
        return "it must be a function that takes the server, or every(seconds, function)"
    if (why := why_not_run(function)) is not None:
        return f"it {why}"
    try:
        import inspect  # 3 ms, for the few programs that have companions

        inspect.signature(function).bind(None)
    except ImportError:  # the program has changed its root directory
        pass
    except TypeError:
        return "it must take one argument, the server"
    except ValueError:  # a builtin without a signature
        pass
    return None
