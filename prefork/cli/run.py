"""`prefork run`: serve a target from a pool of workers.

Runs in the process that becomes the master. Must not decide anything about servers: targets.py makes one, which then
serves.
"""

import argparse

from .. import logs
from ..commands import COMMAND_TABLE
from ..process import rehearsing
from . import launch
from .pages import Section, Subcommand

__all__ = ["RUN"]

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
    plan = launch.read(args)
    if rehearsing():  # its log is for the client that asked for the reload
        logs.check(plan.launch.log_file)
        logs.set_up(plan.launch.log_level)
    else:
        logs.set_up(plan.launch.log_level, plan.launch.log_format, plan.launch.log_file)
    with plan.build() as server:
        if plan.launch.single:
            from .single import serve_single

            serve_single(server)
        else:
            server.serve_forever()
    return 0


RUN = Subcommand(
    "TARGET --bind ADDRESS [--NAME VALUE ...]",
    _DESCRIPTION,
    launch.add_arguments,
    _run,
    launch.sections(
        _EXAMPLES,
        Section(
            "signals", [(", ".join(s.name.removeprefix("SIG") for s in row.signals), row.help) for row in COMMAND_TABLE]
        ),
    ),
)
