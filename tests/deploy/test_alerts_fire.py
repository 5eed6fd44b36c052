"""The alerts, fired for real: pools driven into each state, watched by a real Prometheus with the rules of deploy/."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.clients.connections import ask_datagram, connect, free_port
from tests.support.clients.controlling import AS_OTHER
from tests.support.clients.keeping import holder, staying
from tests.support.hosts.prometheus import Prometheus, needs_prometheus, prometheus
from tests.support.programs.monitored import monitored, target, watching
from tests.support.programs.service import HUNG, Service
from tests.support.tools.figures import figure
from tests.support.tools.proc import no_descriptor_left

pytestmark = needs_prometheus

QUEUE = 4  # request_queue_size of the service that gets full
FIRED = 'max_over_time(ALERTS{alertstate="firing",%s}[10m])'  # at any time since the start
OF_THE_NAMESPACE = "PreforkListenOverflows"  # the kernel's count is everybody's


DYING = """
class Handler(Who):
    def do_segv(self):
        os.kill(os.getpid(), signal.SIGSEGV)
"""

BROKEN = """
class Hooks(Hooks):
    def worker_started(self):
        if os.path.exists("broken"):
            raise RuntimeError("broken on purpose")
        super().worker_started()
"""

SHORT = "from tests.support.programs.watched import Short as Hooks"

KEPT = "from tests.support.programs.kept import Handler"
IDLE_MOST = 3  # connections that a holder may have
HOLDERS_KILLED = 6  # the next one waits for some seconds

DATAGRAMS = "class Handler(DatagramRequestHandler):\n    def handle(self): self.wfile.write(self.packet)\n"
DROPPING = "from tests.support.programs.watched import Busy as Handler, Narrow as Hooks"


@contextlib.contextmanager
def full(service: Service) -> Iterator[None]:
    """Every worker held, the accept queue full, and one connection more for which the kernel has no room."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(service.hold())
        for _ in range(QUEUE + 1):
            stack.enter_context(connect(service.address))
        for _ in range(3):
            late = stack.enter_context(socket.socket())
            late.setblocking(False)
            late.connect_ex(service.address)
        yield


@contextlib.contextmanager
def dying(service: Service) -> Iterator[None]:
    """Requests that raise, and requests that take their worker with them."""
    service.expect("RuntimeError: asked to raise", r"crashed \(killed by SIGSEGV\)")
    for word in [b"raise"] * 20 + [b"segv"] * 3:
        with service.connect() as client:
            client.send(word)
            client.wait_end()
    yield


@contextlib.contextmanager
def broken(service: Service) -> Iterator[None]:
    """A worker is killed, and no new one can start."""
    service.expect("boot_failed")
    (service.directory / "broken").touch()
    service.signal(signal.SIGKILL, service.workers()[0])
    service.wait_pool(lambda pool: pool["exits"].get("boot_failed", 0) >= 2)
    yield
    (service.directory / "broken").unlink()


@contextlib.contextmanager
def short(service: Service) -> Iterator[None]:
    """Most descriptors are open; then there is none left for a connection."""
    with no_descriptor_left(service.workers()[0]), service.connect():
        yield


@contextlib.contextmanager
def dropping(service: Service) -> Iterator[None]:
    """More datagrams than the receive buffer holds, while the worker is busy with the first."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"first", service.address)
        service.wait("busy")
        for _ in range(50):
            client.sendto(b"x" * 1000, service.address)
        yield


@contextlib.contextmanager
def cutting(service: Service) -> Iterator[None]:
    """A datagram comes that is longer than is read of one."""
    assert ask_datagram(service.address, b"x" * 101) == b"x" * 100
    yield


@contextlib.contextmanager
def stale(service: Service) -> Iterator[None]:
    """A release that raises when it is imported."""
    service.expect("(?s)reload failed: the rehearsal .*RuntimeError: released in a hurry")
    program = service.directory / "program.py"
    good = program.read_text()
    program.write_text("raise RuntimeError('released in a hurry')")
    service.signal(signal.SIGHUP)
    yield
    program.write_text(good)


@contextlib.contextmanager
def guarded(service: Service) -> Iterator[None]:
    """A user who is not allowed to opens the control socket."""
    command = [sys.executable, str(AS_OTHER), "c", "", "65534"]
    answer = subprocess.check_output(command, cwd=service.directory, text=True, timeout=HUNG)
    assert "may not use this socket" in answer
    yield


@contextlib.contextmanager
def crowded(service: Service) -> Iterator[None]:
    """More clients stay than the holder may have."""
    with staying(service.address, IDLE_MOST + 2):
        yield


@contextlib.contextmanager
def unheld(service: Service) -> Iterator[None]:
    """The holder is killed with what it has, and again and again, so that it waits to be started."""
    service.allow("kept connections that ended with it")
    with staying(service.address, IDLE_MOST) as clients:
        for client in clients:
            client.say()
        while service.statistics()["connections"]["held"] < IDLE_MOST:
            pass  # each time a turn of the master
        for _ in range(HOLDERS_KILLED):
            service.signal(signal.SIGKILL, holder(service))
        yield


@contextlib.contextmanager
def calm(service: Service) -> Iterator[None]:
    """A service that is well."""
    with service.connect() as client:
        assert int(client.ask(b"pid")) in service.workers()
    yield


# Service, its program, what is done to it, the alerts that must fire.
STATES: dict[str, tuple[str, Callable[[Service], contextlib.AbstractContextManager[None]], set[str]]] = {
    "full": (
        monitored(max_children=2, request_queue_size=QUEUE), full,
        {"PreforkSaturated", "PreforkNearlyFull", "PreforkNoIdleWorker", "PreforkQueueFilling",
         "PreforkRequestNearTimeout", OF_THE_NAMESPACE},
    ),
    "dying": (
        monitored(DYING, max_children=2), dying,
        {"PreforkRequestsLost", "PreforkBadRequests", "PreforkWorkersEndedBadly", "PreforkWorkersKilled",
         "PreforkNoTraffic"},
    ),
    "broken": (
        monitored(BROKEN, max_children=2), broken,
        {"PreforkCrashLoop", "PreforkWorkersBelowMinimum", "PreforkWorkersKilled"},
    ),
    "short": (monitored(SHORT, max_children=1), short, {"PreforkDescriptorsShort", "PreforkDescriptorsExhausted"}),
    "dropping": (
        monitored(DROPPING, bases="PreForkingUDPServer", max_children=1, graceful_timeout=1.0), dropping,
        {"PreforkDatagramsDropped"},
    ),
    "cutting": (
        monitored(DATAGRAMS, bases="PreForkingUDPServer", max_children=1, max_packet_size=100), cutting,
        {"PreforkDatagramsTruncated"},
    ),
    "crowded": (
        monitored(KEPT, max_children=1, max_idle_connections=IDLE_MOST), crowded,
        {"PreforkHeldNearLimit", "PreforkConnectionsEvicted"},
    ),
    "unheld": (monitored(KEPT, max_children=1), unheld, {"PreforkNoHolder", "PreforkConnectionsLost"}),
    "stale": (monitored(max_children=1), stale, {"PreforkReloadFailed"}),
    **({
        "guarded": (monitored(max_children=1, control_socket="c", control_mode=0o666), guarded,
                    {"PreforkControlDenied"}),
    } if os.getuid() == 0 else {}),  # only root can be somebody else
    "calm": (monitored(max_children=2), calm, set()),
}  # fmt: skip


def fired(server: Prometheus, services: str) -> set[tuple[str, str]]:
    """Service and name of every alert that has fired so far."""
    found = server.series(FIRED % f'service=~"{services}"')
    return {(series["metric"]["service"], series["metric"]["alertname"]) for series in found}


def test_every_state_fires_its_alerts(tmp_path: Path) -> None:
    """Each state fires the alerts for it, a dead master its own, and a service that is well none."""
    expected = {(name, alert) for name, (_, _, alerts) in STATES.items() for alert in alerts}
    with contextlib.ExitStack() as stack:
        services = {}
        for name, (program, _, _) in STATES.items():
            (tmp_path / name).mkdir()
            services[name] = stack.enter_context(Service(tmp_path / name, program))
        targets = [target(name, service) for name, service in services.items()]
        gone: dict[str, object] = {"labels": {"service": "gone"}, "targets": [f"127.0.0.1:{free_port()}"]}
        config = watching(tmp_path, [*targets, gone], request_timeout_seconds=2)
        server = stack.enter_context(prometheus(tmp_path, config))
        server.wait_for(f"count(up == 1) == {len(services)}")
        assert fired(server, "calm") == set()
        for name, service in services.items():
            stack.enter_context(STATES[name][1](service))
        for name, alert in sorted({*expected, ("gone", "PreforkDown")}):
            server.wait_for(FIRED % f'service="{name}",alertname="{alert}"')
        found = fired(server, ".+")
    figure("alerts fired for real", len({alert for _, alert in found}))
    assert {alert for name, alert in found if name == "calm"} - {OF_THE_NAMESPACE, "PreforkNoTraffic"} == set()
    assert expected <= found
