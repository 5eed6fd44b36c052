"""`prefork run`: serve a target from a pool of workers.

Runs in the process that becomes the master. Must not decide anything about servers: targets.py makes one, which then
serves.
"""

import argparse
import logging

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.signals import EVERY

from .. import logs
from ..commands import COMMAND_TABLE
from ..errors import BindError
from ..reload.handover import handed
from ..run_mode import rehearsing
from ..settings.sources import CTL_VARIABLE
from ..surroundings.early_signals import AskedToEnd, EarlySignals
from ..surroundings.inherited import put_right
from . import launch
from .pages import Section, Subcommand
from .targets import Server

__all__ = ["RUN"]

log = logging.getLogger("prefork.supervisor")

_DESCRIPTION = f"""\
Serve TARGET from a pool of worker processes until TERM (finish what is in hand) or INT (stop now).

{launch.TARGET_TEXT}
"""
_EXAMPLES = """\
  prefork run prefork.examples:Upper --bind 127.0.0.1:9999

  prefork run app:Server --config service.toml --max-children 8

  PREFORK_TARGET=app:Server PREFORK_BIND=:9999 prefork run
"""


def _run(args: argparse.Namespace) -> int:
    if handed() is not None:  # a reload, which notes signals itself, or its rehearsal, which takes none
        return _serve(args, None)
    put_right(EVERY)  # nothing of the program has run: whatever is blocked or running was inherited
    try:
        early = EarlySignals()
    except OSError:  # the kernel refuses what a pool needs as well, and that is said by its name
        return _serve(args, None)
    early.begin()
    try:
        return _serve(args, early)
    except AskedToEnd:
        log.info("asked to end before it served", extra=event(LogEvent.ENDED_EARLY))
        return 0
    finally:
        early.end()


def _serve(args: argparse.Namespace, early: EarlySignals | None) -> int:
    plan = launch.read(args)
    if rehearsing():  # its log is for the client that asked for the reload
        logs.check(plan.launch.log_file)
        logs.set_up(plan.launch.log_level)
    else:
        logs.set_up(plan.launch.log_level, plan.launch.log_format, plan.launch.log_file)
    with plan.build() as server:
        if plan.launch.single:
            from .single import serve_single

            if early is not None:
                early.end()
            serve_single(server)
        else:
            _serve_pool(plan, server)
    return 0


def _serve_pool(plan: launch.LaunchPlan, server: Server) -> None:
    try:
        server.serve_forever()
    except BindError as exc:
        control = plan.found.get("control_socket")
        if control is not None and control.kind == "variable" and str(control.value) in str(exc):
            exc.add_note(f"{control.origin} is this service's own socket; for prefork ctl alone, set {CTL_VARIABLE}.")
        raise


RUN = Subcommand(
    "TARGET --bind ADDRESS [--NAME VALUE ...]",
    _DESCRIPTION,
    launch.add_arguments,
    _run,
    launch.sections(
        _EXAMPLES,
        Section(
            "signals",
            [
                (", ".join(s.name.removeprefix("SIG") for s in row.signals), row.help)
                for row in COMMAND_TABLE
                if row.signals
            ],
        ),
    ),
)
