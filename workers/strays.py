"""Processes that the program forks inside a call of ours, at the end of that call: they end there.

Runs in such a process, which is neither master nor worker. Where the program's own code ends the process
(multiprocessing, os._exit) nothing here is needed. But one that returns, or raises, would go on with what its parent
was about to do: answer the same request, serve, supervise.
"""

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from prefork.metrics.log_events import LogEvent, event

from .bootstrap import exit_status, leave
from .definitions import evaluated, is_the_programs_module, of_class, put

log = logging.getLogger("prefork.server")

# A worker's calls of the program's code, apart from handlers: workers/lanes.py sees to those.
HOOKS = ("get_request", "verify_request", "process_request", "handle_error", "shutdown_request", "close_request")


def end(exc: BaseException | None = None) -> NoReturn:
    """End this process, as Python ends one: with status 0, that of a SystemExit, or 1 after a traceback in the log."""
    if exc is not None and not isinstance(exc, SystemExit):
        log.error(
            "a process that the program forked ends with an exception: %r",
            exc,
            exc_info=exc,
            extra=event(LogEvent.STRAY_FAILED),
        )
    leave(0 if exc is None else exit_status(exc))


def ending(call: Callable[..., Any], forked: Callable[[], bool]) -> Callable[..., Any]:
    """Return `call`, with an end for every process that is forked in it."""

    def ends_strays(*args: Any, **named: Any) -> Any:
        if forked():  # before this call: a process of the program's makes it for purposes of its own
            return call(*args, **named)
        try:
            result = call(*args, **named)
        except BaseException as exc:
            if forked():
                end(exc)
            raise
        if forked():
            end()
        return result

    return ends_strays


def end_in_hooks(server: Any, forked: Callable[[], bool]) -> None:
    """See to the strays of each hook that the program's class defines itself."""
    for name in HOOKS:
        hook = getattr(server, name)
        if is_the_programs_module(getattr(getattr(hook, "__func__", hook), "__module__", None)):
            put(server, name, ending(_in_force(server, name), forked))


def _in_force(server: Any, name: str) -> Callable[..., Any]:
    """Return what calls the hook: what its class has for it may change while it serves."""
    cls, hook = type(server), evaluated(server, name)
    if name in vars(server):
        return hook
    noted = getattr(cls, name)

    def in_force(*args: Any, **named: Any) -> Any:
        nonlocal hook, noted
        if (now := getattr(cls, name)) is not noted:
            hook, noted = of_class(server, name), now
        return hook(*args, **named)

    return in_force
