"""Socket options by settings: what a connection that was really accepted has, and what a reload changes of it."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import Connection, ask_datagram, dial
from tests.support.programs.command import running
from tests.support.programs.releases import Released
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

SYN_DATA = 32  # TCPI_OPT_SYN_DATA
OPTIONED = "from tests.process.programs.optioned import Handler\n"
SET: dict[str, Any] = {
    "tcp_keepalive": 30.0, "tcp_keepalive_interval": 5.0, "tcp_keepalive_count": 3, "tcp_nodelay": True,
    "receive_buffer": 50_000, "send_buffer": 60_000, "bind_to_device": "lo", "freebind": True,
}  # fmt: skip
THERE = {
    "alive": 1, "tcp_keepalive": 30, "tcp_keepalive_interval": 5, "tcp_keepalive_count": 3, "tcp_nodelay": 1,
    "receive_buffer": 100_000, "send_buffer": 120_000, "bind_to_device": "lo", "freebind": 1,
}  # fmt: skip
BASES = ["PreForkingTCPServer", "PreForkingMixIn, socketserver.ThreadingTCPServer", "PreForkingMixIn, ForkingTCPServer"]


def told(service: Service) -> dict[str, Any]:
    with service.connect() as client:
        found: dict[str, Any] = json.loads(client.ask(b""))
    return found


def among(found: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: found[name] for name in names}


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0)])
@pytest.mark.parametrize("bases", BASES)
def test_each_connection_has_them(bases: str, address: Any, tmp_path: Path) -> None:
    definitions = OPTIONED + (
        "class Hooks(Told):\n    address_family = socket.AF_INET6\n" if address[0] == "::1" else ""
    )
    with Service(tmp_path, script(definitions, bases=bases, address=address, max_children=1, **SET)) as service:
        service.wait_ready(1)
        assert among(told(service), THERE) == THERE


def test_without_settings_a_connection_is_the_systems(tmp_path: Path) -> None:
    with socket.socket() as plain, Service(tmp_path, script(OPTIONED, max_children=1)) as service:
        service.wait_ready(1)
        found = told(service)
        assert not found["alive"]
        assert found["tcp_keepalive"] == plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert (found["tcp_nodelay"], found["bind_to_device"], found["freebind"]) == (0, "", 0)


def test_inherited_listener_has_them(tmp_path: Path) -> None:
    """It came bound, so that what belongs before the bind is put on it when the pool serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = {**SET, "inherited_fd": listener.fileno()}
        with Service(tmp_path, script(OPTIONED, max_children=1, **settings), fds=[listener.fileno()]) as service:
            service.wait_ready(1)
            assert among(told(service), THERE) == THERE


def test_datagrams_have_buffers(tmp_path: Path) -> None:
    definitions = "from tests.process.programs.optioned import DatagramHandler as Handler\n"
    settings: dict[str, Any] = {"receive_buffer": 1 << 30, "send_buffer": 60_000, "bind_to_device": "lo"}
    source = script(definitions, bases="PreForkingUDPServer", max_children=1, **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        found = json.loads(ask_datagram(service.address, b""))
        assert (found["send_buffer"], found["bind_to_device"]) == (120_000, "lo")
        cut = f"receive_buffer of {1 << 30} is cut to {found['receive_buffer'] // 2} by the kernel (net.core.rmem_max)"
        assert service.log.count(cut) == 1


def test_connection_is_the_kernels_until_its_client_has_sent_something(tmp_path: Path) -> None:
    with Service(tmp_path, script(max_children=1, tcp_defer_accept=20.0)) as service:
        service.wait_ready(1)
        with Connection(dial(service.address)) as silent, service.connect() as client:
            assert client.ask(b"pid").isdigit()
            client.sock.shutdown(socket.SHUT_WR)
            client.wait_end()
            assert service.settled()["accepted"] == 1
            assert silent.ask(b"pid").isdigit()


def test_data_come_with_the_first_packet(tmp_path: Path) -> None:
    """Where the kernel allows it; else it is said, once."""
    with Service(tmp_path, script(max_children=1, tcp_fastopen=16)) as service:
        service.wait_ready(1)
        allowed = int(Path("/proc/sys/net/ipv4/tcp_fastopen").read_text()) & 3
        assert service.log.count("tcp_fastopen has no effect") == (not allowed & 2)
        for _ in range(2):  # the first client is given a cookie
            with socket.socket() as sock:
                sock.sendto(b"pid\n", socket.MSG_FASTOPEN, service.address)
                assert sock.recv(99)
                carried = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[5] & SYN_DATA
        assert bool(carried) == (allowed == 3)


def release(more: str) -> str:
    return f"class Hooks(Told):\n    pass\n{more}"


def test_a_reload_changes_what_can_be_changed(tmp_path: Path) -> None:
    """On the listener that serves: connections from then on have the new ones, and what is gone is the system's again;
    what takes a new socket is said."""
    definitions = """
from tests.process.programs.optioned import Handler
exec(open("release.py").read())
"""
    first = release("Hooks.tcp_nodelay, Hooks.tcp_keepalive, Hooks.receive_buffer = True, 30.0, 50_000\n")
    with Released(tmp_path, first, script(definitions, max_children=1)) as service:
        service.wait_ready(1)
        names = ("alive", "tcp_nodelay", "tcp_keepalive", "receive_buffer", "send_buffer")
        assert list(among(told(service), names).values())[:4] == [1, 1, 30, 100_000]
        service.release(
            release("Hooks.tcp_keepalive, Hooks.send_buffer, Hooks.receive_buffer = 40.0, 60_000, 70_000\n")
        )
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        assert list(among(told(service), names).values()) == [1, 0, 40, 140_000, 120_000]
        assert "it takes a restart" not in service.log
        service.release(release(""))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=2)
        found = told(service)
        assert (found["alive"], found["receive_buffer"]) == (0, 140_000)
        assert "receive_buffer stays as it was: it takes a restart to have the system's own again" in service.log


def refused(argv: list[str], folder: Path) -> str:
    """What a command says that is refused for its settings."""
    with running(argv, cwd=folder) as run:
        assert run.ended() == 2
    return run.log


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (
            ["--bind", "unix:s", "--tcp-nodelay", "yes"],
            "tcp_nodelay: it is for TCP, and this is another kind of socket",
        ),
        (["--bind", "unix:s", "--send-buffer", "1MiB"], "send_buffer: it is for TCP and UDP, and this is another"),
        (["--bind", "127.0.0.1:0", "--tcp-keepalive-count", "3"], "tcp_keepalive_count: there is no tcp_keepalive"),
        (["--bind", "127.0.0.1:0", "--bind-to-device", "nowhere0"], "bind_to_device to nowhere0: no such device"),
        (["--bind", "127.0.0.1:0", "--tcp-keepalive", "10h"], "tcp_keepalive to '10h'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_refused_by_a_sentence(verb: str, args: list[str], why: str, tmp_path: Path) -> None:
    assert f"prefork: could not set {why}" in refused([verb, "prefork.examples:Upper", *args], tmp_path)
    assert not (tmp_path / "s").exists()


def test_address_that_is_not_there(tmp_path: Path) -> None:
    source = script(address=("203.0.113.9", 0), max_children=1, freebind=True)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        assert service.wait("listening")["address"][0] == "203.0.113.9"


@pytest.mark.parametrize("verb", ["run", "check"])
def test_one_of_several_listeners_at_a_port_is_refused(verb: str, tmp_path: Path) -> None:
    if Path("/proc/sys/net/ipv4/tcp_migrate_req").read_text().strip() == "1":
        pytest.skip("the kernel moves connections from a listener that closes to another")
    (tmp_path / "shared.py").write_text("""\
import prefork
class Server(prefork.PreForkingTCPServer):
    allow_reuse_port = True
    class RequestHandlerClass(prefork.StreamRequestHandler):
        def handle(self): pass
""")
    said = refused([verb, "shared:Server", "--bind", "127.0.0.1:0"], tmp_path)
    assert "could not set allow_reuse_port: of several listeners at a port, one that closes resets" in said
    assert "net.ipv4.tcp_migrate_req is 1" in said
