"""Several listeners, one pool: addresses of one class, and servers of other classes beside the first."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, Connection, Load, ask, ask_datagram, connect, dial, free_port
from tests.support.clients.controlling import asked, ctl
from tests.support.hosts.manager import passing
from tests.support.programs import command
from tests.support.programs.releases import wait_scraped
from tests.support.programs.service import Service, Watch
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PROGRAM = ("-m", "tests.process.programs.several")
BINDS = ("--bind", "127.0.0.1:0", "--bind", "unix:s", "--bind", "[::1]:0")


def addresses(folder: Path) -> list[Any]:
    """Where the service listens, by its control socket, as a client needs it."""
    found = []
    for each in asked(folder / "c", "status")["listeners"]:
        host, colon, port = each["address"].rpartition(":")
        found.append((host.strip("[]"), int(port)) if colon else os.path.relpath(folder / each["address"]))
    return found


@contextlib.contextmanager
def serving(tmp_path: Path, workers: int = 2, *settings: str) -> Iterator[tuple[Service, Any, Any, str]]:
    """The program, ready, and its three addresses: TCP, UDP, and a path."""
    argv = [*PROGRAM, "0", f"max_children={workers}", *settings]
    with Service(tmp_path, argv=argv, env={"PYTHONPATH": f"{tmp_path}:{command.ROOT}"}) as service:
        service.wait_ready(workers)
        udp = tuple(service.wait("also")["address"])
        yield service, service.address, udp, os.path.relpath(tmp_path / "s")


def test_service_actions_of_each(tmp_path: Path) -> None:
    """Those of each server are called in the master, turn by turn, in their order; one that raises, which is said,
    keeps no other from its own."""
    with serving(tmp_path, 1, "acting") as (service, *_):
        acted = service.wait_each("acted", 30)
        assert {fact["pid"] for fact in acted} == {service.pid}
        assert [fact["server"] for fact in acted[:30]] == ["Lines", "Datagrams", "Paths"] * 10
        assert service.log.count("could not run service_actions(): RuntimeError: what Datagrams does") == 1
        service.expect("could not run service_actions()")
        service.expect("RuntimeError")


# By the command line.


def test_addresses_of_several_kinds(tmp_path: Path) -> None:
    """TCP over IPv4 and IPv6 and a Unix path are served by the same workers; status names all, and over a reload, as at
    the end, each is what it was: the path is removed, the ports are free."""
    argv = ["run", "prefork.examples:Upper", *BINDS, "--max-children", "2", "--control", "c"]
    with command.running(argv, cwd=tmp_path) as run:
        found = addresses(tmp_path)
        assert [type(each) for each in found] == [tuple, str, tuple]
        for _ in range(3):
            assert [ask(each, b"said\n") for each in found] == [b"SAID\n"] * 3
        assert ctl(tmp_path / "c", "reload").returncode == 0
        assert addresses(tmp_path) == found
        assert [ask(each, b"again\n") for each in found] == [b"AGAIN\n"] * 3
        shown = ctl(tmp_path / "c", "status").stdout
        assert all(re.search(rf"^(listening)? +{re.escape(text)}, 0 of", shown, re.MULTILINE)
                   for text in [f"127.0.0.1:{found[0][1]}", "s", f"[::1]:{found[2][1]}"])  # fmt: skip
        assert run.ended(signal.SIGTERM) == 0
    assert not (tmp_path / "s").exists()
    for each in (found[0], found[2]):
        with pytest.raises(ConnectionRefusedError):
            dial(each)


def test_what_a_reload_has_dropped_is_free(tmp_path: Path) -> None:
    """No process of the service holds the address any more, be it the exporter: clients are refused there, and a later
    reload has it again."""
    conf, port = tmp_path / "s.toml", free_port()

    def write(*binds: str) -> None:
        conf.write_text(f"[prefork]\nbind = {[*binds]}\nmetrics = 'unix:m'\ncontrol = 'c'\nmax_children = 1\n")

    write("unix:s", f"127.0.0.1:{port}")
    with command.running(["run", "prefork.examples:Upper", "--config", "s.toml"], cwd=tmp_path) as run:
        write("unix:s")
        assert ctl(tmp_path / "c", "reload").returncode == 0
        with pytest.raises(ConnectionRefusedError):
            dial(("127.0.0.1", port))
        write("unix:s", f"127.0.0.1:{port}")
        assert ctl(tmp_path / "c", "reload").returncode == 0
        assert ask(("127.0.0.1", port), b"x\n") == b"X\n"
        assert run.ended(signal.SIGTERM) == 0


def test_a_reload_adds_one_and_drops_one(tmp_path: Path) -> None:
    """What the file says anew is listened to from then on, what it leaves out no longer is, and of clients that connect
    all the while at the address that stays none is refused or left without an answer."""
    conf, port = tmp_path / "s.toml", free_port()
    conf.write_text(f'[prefork]\nbind = ["127.0.0.1:{port}", "unix:old"]\n')
    argv = ["run", "prefork.examples:Upper", "--config", "s.toml", "--max-children", "2", "--control", "c"]
    with command.running(argv, cwd=tmp_path) as run:
        assert ask(os.path.relpath(tmp_path / "old"), b"x\n") == b"X\n"
        with Load(("127.0.0.1", port), question=b"x\n", right=rb"X\n") as load:
            load.wait_answered(20)
            conf.write_text(f'[prefork]\nbind = ["unix:new", "127.0.0.1:{port}"]\n')
            assert ctl(tmp_path / "c", "reload").returncode == 0
            load.wait_answered(20)
        assert not load.tally.failures, load.tally.failed
        assert ask(os.path.relpath(tmp_path / "new"), b"x\n") == b"X\n"
        assert not (tmp_path / "old").exists()
        assert [each["address"] for each in asked(tmp_path / "c", "status")["listeners"]] == [
            "new",
            f"127.0.0.1:{port}",
        ]
        assert run.ended(signal.SIGTERM) == 0
        assert "no longer listening on old" in run.log


def test_tables_of_other_targets(tmp_path: Path) -> None:
    """[[prefork.also]] serves other targets beside the first, in the same workers; what is the pool's stands elsewhere,
    and a mistake in a table is told by its number."""
    conf = tmp_path / "s.toml"
    also = '[[prefork.also]]\ntarget = "prefork.examples:UpperDatagram"\nbind = "udp://127.0.0.1:0"\n'
    conf.write_text(f'[prefork]\ntarget = "prefork.examples:Upper"\nbind = "127.0.0.1:0"\nmax_children = 1\n{also}'
                    '[[prefork.also]]\nbind = "unix:s"\nsocket_mode = "0600"\n')  # fmt: skip
    with command.running(["run", "--config", "s.toml", "--control", "c"], cwd=tmp_path):
        tcp, udp, path = addresses(tmp_path)
        assert (ask(tcp, b"x\n"), ask_datagram(udp, b"y"), ask(path, b"z\n")) == (b"X\n", b"Y", b"Z\n")
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    for table, said in [
        (
            "max_children = 3",
            "could not use s.toml: also 1: max_children is a setting of the pool, which stands in [pre",
        ),
        ('taget = "a:b"', "could not use s.toml: also 1: there is no setting taget; did you mean target?"),
        ("tls_alpn = 'h2'", "could not use s.toml: also 1: it says neither target nor bind"),
        ("bind = 3", "must be host:port"),
        ('target = "prefork.examples:Upper"', "it needs an address; say bind in its table [[prefork.also]]"),
        ("bind = [3]", "could not set bind to [3] (from s.toml: also 1: bind): it must be addresses, as texts"),
    ]:
        conf.write_text(f'[prefork]\ntarget = "prefork.examples:Upper"\nbind = ":0"\n[[prefork.also]]\n{table}\n')
        with command.running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
            assert run.ended() == 2
        assert said in run.log


@pytest.mark.parametrize("bind", ["systemd", "systemd:web"])
def test_sockets_that_systemd_passes(bind: str, tmp_path: Path) -> None:
    """All that were passed, or all of a name, are served, in their order, over a reload too, and none is closed."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        program = (*passing(*(("web", sock.fileno()) for sock in socks)), *command.MODULE)
        argv = ["run", "prefork.examples:Upper", "--bind", bind, "--max-children", "1", "--control", "c"]
        with command.running(argv, cwd=tmp_path, program=program, fds=[sock.fileno() for sock in socks]) as run:
            for _ in range(2):
                assert addresses(tmp_path) == [sock.getsockname() for sock in socks]
                assert [ask(sock.getsockname(), b"x\n") for sock in socks] == [b"X\n"] * 2
                assert ctl(tmp_path / "c", "reload").returncode == 0
            assert run.ended(signal.SIGTERM) == 0
        for sock in socks:
            dial(sock.getsockname()).close()  # its queue is for whoever serves next


@pytest.mark.parametrize(("argv", "said"), [
    (["--bind", ":0", "--bind", ":0", "--single"], "could not serve with --single: it serves one address, and"),
    (["--bind", "unix:s", "--bind", "unix:s"], "could not set bind to unix:s (from --bind): that is taken by --bind"),
    (["--bind", ":0", "--bind", "udp://:0"], "the socket is one for datagrams"),
])  # fmt: skip
def test_what_cannot_be_served_together(argv: list[str], said: str, tmp_path: Path) -> None:
    """It is refused by one sentence before anything is served, and no path is left."""
    with command.running(["run", "prefork.examples:Upper", *argv], cwd=tmp_path) as run:
        assert run.ended() == 2
    assert said in run.log
    assert list(tmp_path.iterdir()) == []


def test_workers_of_one_request_take_turns(tmp_path: Path) -> None:
    """While the queues of two listeners are full, neither is served before the other."""
    shutil.copy(Path(__file__).parent / "programs" / "ahead.py", tmp_path)
    (tmp_path / "s.toml").write_text(
        "[prefork]\ntarget = 'ahead:Tcp'\nbind = '127.0.0.1:0'\nmax_children = 1\ncontrol = 'c'\n"
        "[[prefork.also]]\ntarget = 'ahead:Unix'\nbind = 'unix:s'\n"
    )
    with command.running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
        tcp, path = addresses(tmp_path)
        with connect(tcp) as held, contextlib.ExitStack() as stack:
            clients = [(stack.enter_context(connect(at)), at) for _ in range(20) for at in (tcp, path)]
            for each in (held, *(client for client, _ in clients)):
                each.sock.shutdown(socket.SHUT_WR)
            held.answer()
            first = sorted((int(client.answer()), at) for client, at in clients)[:20]
            assert {at for _, at in first} == {tcp, path}
        assert run.ended(signal.SIGTERM) == 0


# By a program.


def test_servers_of_other_classes(tmp_path: Path) -> None:
    """Each is served in its own way by the same workers: by its handler, and its hooks in worker and master."""
    with serving(tmp_path) as (service, tcp, udp, path):
        assert ask_datagram(udp, b"said") == b"SAID"
        with connect(tcp) as one, connect(path) as other:
            assert {int(one.ask(b"pid")), int(other.ask(b"pid"))} == set(service.workers())
        with connect(path) as failing:
            failing.send(b"raise")
            failing.wait_end()
        assert service.wait("failed")["server"] == "Paths"
        assert service.settled()["failed"] == 1
    for event, count in (("started", 2), ("stopping", 2), ("closed", 1)):
        found = [fact["server"] for fact in service.facts if fact["event"] == event]
        assert sorted(found) == sorted(["Lines", "Datagrams", "Paths"] * count), event


@pytest.mark.parametrize(
    "model", [(), ("threads", "max_threads=1"), ("hooked", "max_threads=1")], ids=["alone", "threads", "hooked"]
)
def test_who_is_queued_at_any_of_them_is_served_in_a_drain(model: tuple[str, ...], tmp_path: Path) -> None:
    """TERM while every worker is busy: whoever waits at any of the listeners gets its answer."""
    with serving(tmp_path, 1, *model) as (service, tcp, udp, path):
        held = connect(tcp)
        held.ask(b"pid")
        queued = [connect(tcp), connect(path)]
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(HUNG)
            client.sendto(b"x", udp)
            for each in queued:
                each.send(b"pid")
                each.sock.shutdown(socket.SHUT_WR)
            service.signal(signal.SIGTERM)
            held.close()
            assert client.recv(10) == b"X"
            for each in queued:
                assert each.answer().isdigit()
                each.close()
        assert service.wait_exit() == 0


@pytest.mark.parametrize("model", [(), ("threads",), ("hooked",)], ids=["alone", "threads", "hooked"])
def test_a_storm_of_kills_is_accounted_for(model: tuple[str, ...], tmp_path: Path) -> None:
    """Workers are killed while clients come at each listener: what was accepted is answered or lost, to the unit."""
    chosen = random.Random(17)
    with serving(tmp_path, 3, "max_restart_delay=0.5", *model) as (service, tcp, udp, path):
        with Load(tcp, 2) as one, Load(path, 2) as other:
            for _ in range(15):
                one.wait_answered()
                other.wait_answered()
                with socket.socket(type=socket.SOCK_DGRAM) as client:
                    client.sendto(b"x", udp)
                if workers := service.workers():
                    pid = chosen.choice(workers)
                    with contextlib.suppress(ProcessLookupError), Watch(pid) as killed:
                        service.signal(signal.SIGKILL, pid)
                        killed.wait_dead()
        for address in (tcp, path):
            with connect(address) as client:
                assert client.ask(b"pid").isdigit()
        assert ask_datagram(udp, b"y") == b"Y"
        found = service.settled()
        ends = ("completed", "failed", "timed_out", "rejected", "handed_over", "lost")
        assert found["accepted"] == sum(found[each] for each in ends)
        assert found["lost"] >= one.tally.failures + other.tally.failures - 15  # a kill may come after the answer


def test_a_handler_of_any_of_them_ends_the_service(tmp_path: Path) -> None:
    """`shutdown()` of the server that a handler has drains the pool."""
    with serving(tmp_path) as (service, _, _, path):
        with connect(path) as client:
            client.ask(b"shutdown")
        assert service.wait_exit() == 0


def test_every_worker_that_ends_is_replaced_by_one_that_serves_all(tmp_path: Path) -> None:
    """`max_requests` counts the requests of all listeners together."""
    with serving(tmp_path, 1, "max_requests=4") as (service, tcp, udp, path):
        ask_datagram(udp, b"x")
        for address in (tcp, path, tcp):
            ask(address, b"pid\n")
        service.wait_ready(1, max_requests=1)
        assert ask(path, b"pid\n").strip().isdigit()


# Counts.


def counted(folder: Path) -> list[int]:
    """How many connections each listener has had."""
    return [each["accepted"] for each in asked(folder / "c", "status")["listeners"]]


def test_each_listener_has_counts_of_its_own(tmp_path: Path) -> None:
    """They go on when its workers die and when the service is reloaded; one that is new begins at nothing, whatever one
    that is gone had; and what the service has done in all never falls."""
    conf, port = tmp_path / "s.toml", free_port()

    def listens(*paths: str) -> None:
        conf.write_text(f"[prefork]\nbind = {['127.0.0.1:0', *(f'unix:{path}' for path in paths)]}\n")

    listens("a", "b")
    argv = ["run", "prefork.examples:Upper", "--config", "s.toml", "--max-children", "2", "--control", "c"]
    with command.running([*argv, "--metrics", f"127.0.0.1:{port}"], cwd=tmp_path) as run:

        def ask_each(*times: int) -> None:
            for address, count in zip(addresses(tmp_path), times, strict=True):
                for _ in range(count):
                    assert ask(address, b"x\n") == b"X\n"

        ask_each(3, 2, 1)
        assert counted(tmp_path) == [3, 2, 1]
        for worker in asked(tmp_path / "c", "workers")["workers"]:
            ctl(tmp_path / "c", "restart", str(worker["slot"]))
        ask_each(1, 1, 1)
        assert counted(tmp_path) == [4, 3, 2]
        (tcp,) = (each for each in addresses(tmp_path) if isinstance(each, tuple))
        for name, listener, count in (
            ("ok", f"127.0.0.1:{tcp[1]}", 4),
            ("ok", "a", 3),
            ("ok", "b", 2),
            ("lost", "a", 0),
        ):
            wait_scraped(port, f'prefork_requests_total{{listener="{listener}",outcome="{name}"}}', count)
        wait_scraped(port, 'prefork_request_duration_seconds_count{listener="b"}', 2)
        for paths, times, found in ((("b", "new"), (0, 0, 5), [4, 2, 5]), (("b", "newest"), (1, 1, 1), [5, 3, 1])):
            listens(*paths)
            assert ctl(tmp_path / "c", "reload").returncode == 0
            ask_each(*times)
            assert counted(tmp_path) == found
        assert asked(tmp_path / "c", "status")["requests"]["accepted"] == 9 + 5 + 3
        run.allow("removed or replaced")
        (tmp_path / "b").unlink()  # bound anew, it is the same listener to whoever reads its counts
        assert ctl(tmp_path / "c", "reload").returncode == 0
        ask_each(0, 1, 0)
        assert counted(tmp_path) == [5, 4, 1]
        assert run.ended(signal.SIGTERM) == 0


def test_the_death_of_a_worker_is_counted_where_its_request_came_from(tmp_path: Path) -> None:
    """The request that dies with it is lost at that listener, and at no other."""
    port = free_port()
    with serving(tmp_path, 1, f"metrics_port={port}") as (service, tcp, _, path):
        with connect(path) as held:
            pid = int(held.ask(b"pid"))
            for listener, count in (("s", 1), (f"127.0.0.1:{tcp[1]}", 0)):
                wait_scraped(port, f'prefork_requests_in_flight{{listener="{listener}"}}', count)
            service.signal(signal.SIGKILL, pid)
            service.wait_ready(1, killed=1)
        for listener, count in (("s", 1), (f"127.0.0.1:{tcp[1]}", 0)):
            wait_scraped(port, f'prefork_requests_total{{listener="{listener}",outcome="lost"}}', count)


# Models.


@pytest.mark.parametrize("threads", [4, None])
def test_threads_serve_each_in_its_own_way(threads: int | None, tmp_path: Path) -> None:
    """Any thread of a worker takes what comes by any listener, and counts it there; clients that hold some of its lanes
    by one listener leave the others to all of them."""
    conf = tmp_path / "s.toml"
    conf.write_text(f"""[prefork]
target = "prefork.examples:Upper"
bind = ["127.0.0.1:0", "unix:s"]
max_children = 1
max_threads = {threads or '"off"'}
[[prefork.also]]
target = "prefork.examples:UpperDatagram"
bind = "udp://127.0.0.1:0"
""")
    with command.running(["run", "--config", "s.toml", "--control", "c"], cwd=tmp_path) as run:
        tcp, path, udp = addresses(tmp_path)
        held = [connect(address) for address in (tcp, path, tcp)]
        assert [each.ask(b"x") for each in held] == [b"X"] * 3
        for _ in range(20):
            assert ask_datagram(udp, b"y") == b"Y"
            assert ask(path, b"z\n") == b"Z\n"
        assert counted(tmp_path) == [2, 21, 20]
        deadline = monotonic() + HUNG
        while (found := [each["in_flight"] for each in asked(tmp_path / "c", "status")["listeners"]]) != [2, 1, 0]:
            assert monotonic() < deadline, f"hung: {found}"
        if threads is None:  # more than the lanes that are open at first
            held += [connect(path) for _ in range(70)]
            assert [each.ask(b"x") for each in held] == [b"X"] * 73
            assert counted(tmp_path)[1] == 91
        asks: dict[str, Any] = {"question": b"q\n", "right": rb"Q\n"}
        with Load(tcp, 2, **asks) as load, Load(path, 2, **asks) as other:
            load.wait_answered(20)
            other.wait_answered(20)
        assert not load.tally.failures + other.tally.failures, (load.tally.failed, other.tally.failed)
        assert ctl(tmp_path / "c", "reload").returncode == 0
        assert ask(path, b"x\n") == b"X\n"
        for each in held:
            each.close()
        assert run.ended(signal.SIGTERM) == 0


def test_forked_ahead(tmp_path: Path) -> None:
    """Below a ForkingMixIn a worker serves one request, of whichever listener, and leaves."""
    (tmp_path / "ahead.py").write_text(
        "import os, prefork\n"
        "class Pid(prefork.StreamRequestHandler):\n"
        "    def handle(self): self.wfile.write(b'%d' % os.getpid())\n"
        "class Server(prefork.PreForkingMixIn, prefork.ForkingMixIn, prefork.TCPServer):\n"
        "    RequestHandlerClass = Pid\n"
    )
    argv = ["run", "ahead:Server", *BINDS[:2], *BINDS[4:], "--max-children", "2", "--control", "c"]
    with command.running(argv, cwd=tmp_path):
        found = addresses(tmp_path)
        assert len({ask(address, b"") for address in found * 4}) == 8
        assert counted(tmp_path) == [4, 4]


def test_limits_count_what_comes_by_any_of_them(tmp_path: Path) -> None:
    """A connection more than `max_connections` is closed, whichever listener the others came by."""
    argv = ["run", "prefork.examples:Upper", *BINDS, "--max-children", "1", "--max-threads", "9", "--control", "c"]
    with command.running([*argv, "--max-connections", "3"], cwd=tmp_path):
        found = addresses(tmp_path)
        held = [connect(address) for address in found]
        assert [each.ask(b"x") for each in held] == [b"X"] * 3
        for address in found:
            with contextlib.suppress(ConnectionResetError), dial(address) as more:
                assert more.recv(1) == b""
        held.pop().close()
        for each in held:
            assert each.ask(b"y") == b"Y"
            each.close()


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
@pytest.mark.parametrize("target", ["prefork.examples:Upper", "tests.support.programs.kept:Handler"])
def test_limits_of_one_count_what_comes_by_the_others(target: str, limit: str, tmp_path: Path) -> None:
    """A listener without the limit admits whoever comes; one that has it counts these among its own, kept ones as well,
    and is open again once they are gone."""
    (tmp_path / "s.toml").write_text(
        f'[prefork]\ntarget = "{target}"\nbind = "127.0.0.1:0"\nmax_children = 2\nmax_threads = 9\ncontrol = "c"\n'
        f'[[prefork.also]]\nbind = "127.0.0.1:0"\n{limit} = 3\n'
    )

    def admitted(address: Any) -> bool:
        with contextlib.suppress(ConnectionError), dial(address) as sock:
            sock.sendall(b"pid\n")
            return sock.recv(99) != b""
        return False

    with command.running(["run", "--config", "s.toml"], cwd=tmp_path):
        free, limited = addresses(tmp_path)
        with contextlib.ExitStack() as held:
            for _ in range(3):
                assert held.enter_context(connect(free)).ask(b"pid")
            assert not admitted(limited)
            assert admitted(free)
        deadline = monotonic() + HUNG
        while not admitted(limited):
            assert monotonic() < deadline, "hung: connections that are gone are counted"


def test_tls_at_one_of_them(tmp_path: Path) -> None:
    """A table's settings are those of its listeners alone: there a client shakes hands, at the others none is asked to;
    a new pair is taken by all of them, or by none."""
    make_certificate(tmp_path)
    (tmp_path / "s.toml").write_text(
        '[prefork]\ntarget = "prefork.examples:Upper"\nbind = "127.0.0.1:0"\nmax_children = 1\n'
        '[[prefork.also]]\nbind = "[::1]:0"\ntls_certificate = "cert.pem"\ntls_key = "key.pem"\n'
    )
    with command.running(["run", "--config", "s.toml", "--control", "c"], cwd=tmp_path) as run:
        plain, secured = addresses(tmp_path)

        def shaken() -> bytes:
            with client_context(tmp_path, certified=False).wrap_socket(
                dial(secured), server_hostname="localhost"
            ) as client:
                client.sendall(b"x\n")
                return client.recv(10)

        for _ in range(2):
            assert (ask(plain, b"x\n"), shaken()) == (b"X\n", b"X\n")
            assert ctl(tmp_path / "c", "reload-tls").returncode == 0
        (tmp_path / "key.pem").rename(tmp_path / "gone.pem")
        run.allow("could not reload-tls|reload_tls")
        assert ctl(tmp_path / "c", "reload-tls").returncode == 1
        assert (ask(plain, b"x\n"), shaken()) == (b"X\n", b"X\n")


def test_what_check_says_of_several(tmp_path: Path) -> None:
    """Each address, and each warning once."""
    conf = tmp_path / "s.toml"
    conf.write_text(
        '[prefork]\ntarget = "app:Nothing"\nbind = ["127.0.0.1:0", "unix:s"]\nmax_threads = 3\n'
        '[[prefork.also]]\ntarget = "prefork.examples:Upper"\nbind = "[::1]:0"\n'
    )
    (tmp_path / "app.py").write_text("import prefork\nclass Nothing(prefork.StreamRequestHandler):\n    pass\n")
    argv = [sys.executable, "-m", "prefork", "check", "--config", "s.toml"]
    environ = {**os.environ, "PYTHONPATH": str(command.ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("address")] == [
        "address   127.0.0.1:0: free", "address   s: free", "address   [::1]:0: free"
    ]  # fmt: skip
    assert done.stdout.count("Nothing does nothing with a request") == 1
    assert not (tmp_path / "s").exists()


KEPT = """
[prefork]
target = "looping:Lines"
bind = "127.0.0.1:0"
max_children = 1
control = "unix:c"
[[prefork.also]]
target = "prefork.examples:Upper"
bind = "127.0.0.1:0"
[[prefork.also]]
target = "looping:Lines"
bind = "127.0.0.1:0"
"""


@pytest.mark.parametrize("threads", ["", "max_threads = 4\n"], ids=["sync", "threads"])
def test_connections_that_are_kept_and_others(threads: str, tmp_path: Path) -> None:
    """A listener whose connections are kept, one that keeps nothing, one of the same handler over TLS: each serves, and
    counts, as it does alone."""
    make_certificate(tmp_path)
    tls = f'tls_certificate = "{CERTIFICATE}"\ntls_key = "{KEY}"\n'
    (tmp_path / "s.toml").write_text(KEPT.replace("max_children", f"{threads}max_children") + tls)
    shutil.copy(Path(__file__).parent / "programs" / "looping.py", tmp_path)
    with command.running(["run", "--config", "s.toml"], cwd=tmp_path):
        kept, plain, secure = addresses(tmp_path)
        with connect(kept) as client:
            for number in range(1, 4):
                assert client.ask(b"x") == b"%d x" % number
                assert ask(plain, b"x\n") == b"X\n"
                context = client_context(tmp_path, certified=False)
                with Connection(context.wrap_socket(dial(secure), server_hostname="localhost")) as other:
                    assert [other.ask(b"y"), other.ask(b"y")] == [b"1 y", b"2 y"]
            deadline = monotonic() + HUNG
            while (found := asked(tmp_path / "c", "status"))["connections"]["held"] != 1:
                assert monotonic() < deadline, f"hung: {found['connections']}"
        assert [each["accepted"] for each in found["listeners"]] == [3, 3, 6]
