"""`prefork check`: load everything, boot one worker that serves nothing, and print the result.

Runs in its own process and must not disturb a running service.
"""

import argparse
import sys
from collections import Counter
from time import monotonic

from .. import logs
from ..pool import pool_of
from ..reload.rehearsal import boot_one
from ..settings.fields import validate
from ..surroundings.room import check_room
from . import launch
from .dry_run import dry_run
from .findings import findings
from .pages import Subcommand

__all__ = ["CHECK"]

_DESCRIPTION = f"""\
Read every setting, import TARGET, make its server and boot one worker through worker_started(), with the same
arguments as prefork run. The worker serves nothing and leaves.

No address is taken: each is looked at, and one that is in use is said and not tried, so that the check can be run
beside the service. Ask prefork.rehearsing() in a program that has what may exist only once (a second port, a pid file,
a migration): it is true here, as in the rehearsal of a reload.

What shows only under load is a warning: a thread that is alive at the fork, a default timeout of sockets, a TLS
handshake that is waited for, a setting without effect, a handler that does nothing. The service would start all the
same, and the exit status is 0.

{launch.TARGET_TEXT}
"""
_EXIT_STATUS = {
    **launch.EXIT_STATUS,
    0: "it would start",
    3: "the worker could not start",
    4: "an address cannot be had",
    130: "interrupted before it was done",
}
_EXAMPLES = """\
  prefork check app:Server --config service.toml && systemctl reload service
"""


def _run(args: argparse.Namespace) -> int:
    plan = launch.read(args)
    logs.check(plan.launch.log_file)
    with dry_run() as tried, plan.build() as server:
        _say("target", f"{plan.launch.target} is loaded")
        _say("settings", _sources(plan) or "all by default")
        for each in pool_of(server).each:
            validate(each.server)
        pool_of(server).check()
        check_room(server.max_children, len(pool_of(server).companions()))
        # Before a worker boots: what it starts is its own. What holds for several servers is said once.
        found = dict.fromkeys(sentence for each in pool_of(server).each for sentence in findings(each.server))
        since = monotonic()
        boot_one(pool_of(server).rehearsal())
        for address, verdict in tried.seen or [("inherited", "it came bound")]:
            _say("address", f"{address}: {verdict}")
        _say("worker", f"booted in {monotonic() - since:.2f} s, and left")
        for sentence in found:
            _say("warning", sentence)
    sys.stdout.write("ok\n")
    return 0


def _sources(plan: launch.LaunchPlan) -> str:
    counts = Counter(found.origin for name, found in plan.found.items() if name != "target")
    files = Counter(origin.partition(":")[0] for origin in counts if ": " in origin)
    others = [origin for origin in counts if ": " not in origin]
    return ", ".join([*(f"{count} of {path}" for path, count in files.items()), *others])


def _say(what: str, text: str) -> None:
    sys.stdout.write(f"{what:10}{text}\n")
    sys.stdout.flush()  # otherwise a worker forked later would print it again


CHECK = Subcommand(
    "TARGET --bind ADDRESS [--NAME VALUE ...]",
    _DESCRIPTION,
    launch.add_arguments,
    _run,
    launch.sections(_EXAMPLES, exit_status=_EXIT_STATUS),
)
