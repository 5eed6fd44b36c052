"""The degraded master: after the exec the program failed, and the old generation goes on serving without it.

Runs in the new image, instead of a pool's `serve_forever()`. Obeys every command that starts no worker. The next reload
begins again from the original command line, and ends this state if the program is mended. Must not start a worker: it
has no handler to run.
"""

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from setproctitle import setproctitle

from prefork.workers.descriptor_limit import raised
from prefork.workers.privileges import Privileges
from prefork.workers.signals import Signals, handled, set_mask
from prefork.workers.wakeup import Wakeup

from ..commands import BY_SIGNAL, Command
from ..control.access import resumed_listener, resumed_terms
from ..control.server import open_control
from ..errors import PreforkError
from ..exporter.child import Exported, ExporterChild
from ..holder.child import HeldTerms, HolderChild, all_of
from ..logs import complain
from ..master.guard import attempt, insist
from ..master.kept_queues import KeptQueues
from ..master.mailbox import Mailbox
from ..master.policy import HANDED_ON, NO_POOL, Limits
from ..master.service import Service
from ..master.supervisor import Supervisor
from ..process import unharmed
from ..sockets.addresses import over
from ..sockets.listener import Listener, listener_names
from .generations import Generations
from .handover import METRICS, Handed, Record


def serve_degraded(handed: Handed, why: str) -> int:
    """Supervise the children that are there until told to end; return the exit status.

    Every signal must be blocked when this is called.
    """
    try:
        handed.take_back()  # before a new descriptor of ours takes a number that the program has closed
    except PreforkError as exc:
        attempt("say why this is the end", partial(complain, f"prefork: {exc}\n"))
        return exc.exit_code
    wakeup = insist("make a wake-up", Wakeup)
    mailbox = Mailbox(wakeup.wake)
    signals = Signals(wakeup, lambda signum: mailbox.post(BY_SIGNAL[signum]))
    title = f"prefork: master {handed.values['name']} degraded"
    with unharmed(), raised():
        supervisor, listeners = insist(
            "go on without the program", lambda: _start(handed, why, wakeup, mailbox, signals)
        )
        attempt("show in the title what this is", lambda: setproctitle(title))
        set_mask(handed.values["mask"])
        supervisor.run()
        supervisor.close()
    signals.close()
    for listener in listeners.values():
        if listener is not None:
            listener.unlink()
            listener.close()
    return 0


def _start(
    handed: Handed, why: str, wakeup: Wakeup, mailbox: Mailbox, signals: Signals
) -> tuple[Supervisor, Mapping[str, Listener | None]]:
    """Make everything up to the loop. Raises OSError; it can be tried again then."""
    values = handed.values
    handed.take_back()
    listeners = {name: handed.resume(name) for name in handed.roles}
    generations = Generations(pack=_packer(values), handed=handed, failed=why)
    supervisor = _supervisor(handed, listeners, wakeup, signals, generations, mailbox)
    if "control" in values:
        packed = values["control"]
        open_control(supervisor, generations, resumed_terms(packed), resumed_listener(packed), packed)
    if handed.early is not None:
        handed.early.hand_over(signals)
        handed.early = None
    Signals.hold_still(set(values.get("handled", ())) - {*BY_SIGNAL, *handled()})
    signals.take(dict.fromkeys(BY_SIGNAL, signals.note))
    signals.outlive_readers()
    return supervisor, listeners


def limits(values: Mapping[str, Any]) -> Limits:
    """Return limits for a pool that starts no worker: as many as are serving now."""
    serving = sum(child["kind"] == "WORKER" and child["state"] in ("STARTING", "READY") for child in values["children"])
    kept = {name: values[name] for name in HANDED_ON if name in values}
    return NO_POOL._replace(pool=True, max_children=serving or 1, min_children=serving or 1, **kept)


def _packer(values: Mapping[str, Any]) -> Callable[[Record], None]:
    """Return a `pack` that hands on to the next image, unchanged, what was handed to this one."""

    def pack(record: Record) -> None:
        for name in (*listener_names(values), METRICS):
            if name in values:
                record.values[name] = values[name]
                record.fds.append(values[name]["fd"])
        if "places" in values:
            record.add("places", (values["places"], values["places"]["fds"]))
        record.add("own", ([], []))
        if "log" in values:
            record.add("log", (values["log"], values["log"]))
        record.values["fixed"] = values["fixed"]
        record.values["control_path"] = values["control_path"]
        record.values |= {name: values[name] for name in ("holder", "privileges") if name in values}
        record.values["directory"] = values["directory"]

    return pack


def _supervisor(
    handed: Handed,
    listeners: Mapping[str, Listener | None],
    wakeup: Wakeup,
    signals: Signals,
    generations: Generations,
    mailbox: Mailbox,
) -> Supervisor:
    values = handed.values

    def forget() -> None:
        signals.put_back()
        supervisor.forget()

    others = tuple(over(fd, socket.socket) for fd in values.get("places", {"fds": ()})["fds"])
    served = tuple(sock for name in listener_names(listeners) if (sock := listeners[name]) is not None)

    def leave() -> None:
        for sock in (*others, *listeners.values()):
            if sock is not None:
                sock.close()

    kept = KeptQueues(False, values.get("queues"))
    for end in kept.queues or ():
        handed.lend(end.sock)
    privileges = Privileges(*values["privileges"]) if values.get("privileges") else None
    service = Service(values["name"], forget=forget, listeners=served, others=others, kept=kept, privileges=privileges)
    supervisor = Supervisor(service, limits(values), handed.board(), wakeup, generations, mailbox)
    if values["seen"] is not None:
        from .on_change import Changes

        reload = partial(mailbox.post, Command.RELOAD)
        supervisor.tasks.changes = Changes(reload, before=values["seen"])
    metrics = listeners.get(METRICS)
    if metrics is not None and served:
        subject = Exported(service.name, served, True, lambda: True, supervisor.companions.table, privileges,
                           others)  # fmt: skip
        exporter = ExporterChild(subject, metrics, handed.board(), supervisor.fork, supervisor.forget_memory)
        supervisor.tasks.export(exporter)
    if kept.queues is not None and values.get("holder") is not None:
        terms, numbers = HeldTerms(*values["holder"]), all_of(service.numbers)
        holder = HolderChild(terms, kept, numbers, handed.board(), supervisor.fork, supervisor.nudge,
                             supervisor.connections, adopts=True, leave=leave)  # fmt: skip
        supervisor.tasks.hold(holder)
    return supervisor
