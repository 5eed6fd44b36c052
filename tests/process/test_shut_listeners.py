"""A handler shuts the socket of its server down, shutdown(2): for every worker, as they share it."""

import contextlib
import os
import socket
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, ask, ask_datagram, connect
from tests.support.clients.scraping import get
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

FROM = "from tests.process.programs.shutting import {} as Handler\n"
HOOKED = "from tests.process.programs.shutting import Hooked as Hooks\n"
STREAMS = {
    "sync": ("PreForkingMixIn", FROM.format("Shutting")),
    "threads": ("PreForkingMixIn, ThreadingMixIn", FROM.format("Shutting")),
    "hooked threads": ("PreForkingMixIn, ThreadingMixIn", FROM.format("Shutting") + HOOKED),
    "forked ahead": ("PreForkingMixIn, ForkingMixIn", FROM.format("Shutting")),
    "kept": ("PreForkingMixIn", FROM.format("Kept")),
    "kept in threads": ("PreForkingMixIn, ThreadingMixIn", FROM.format("Kept")),
}
AGAIN = {
    "TCPServer": "it listens again, and what was queued there is lost",
    "UnixStreamServer": "its path is bound anew, what was queued there is lost, and the workers are replaced",
}


def asked_until_answered(address: Any) -> bytes:
    """Who is refused, or cut off, asks again."""
    deadline = monotonic() + HUNG
    while True:
        with contextlib.suppress(OSError):
            if answer := ask(address, b"pid\n"):
                return answer
        assert monotonic() < deadline, "hung: nobody is served any more"


# Of TCP the kernel makes no difference.
@pytest.mark.parametrize(
    ("base", "how"), [("TCPServer", b"both"), ("UnixStreamServer", b"both"), ("UnixStreamServer", b"read")]
)
@pytest.mark.parametrize("model", STREAMS)
def test_clients_are_served_again(base: str, model: str, how: bytes, tmp_path: Path) -> None:
    """Without a reload, by every way to serve; and again after the next time, which is said as well."""
    bases, definitions = STREAMS[model]
    again = (1, 2) if model == "sync" else (1,)
    address = "s" if base == "UnixStreamServer" else ("127.0.0.1", 0)
    with Service(tmp_path, script(definitions, bases=f"{bases}, {base}", address=address, max_children=2)) as service:
        service.wait_ready(2)
        for times in again:
            assert ask(service.address, how + b"\n")
            while service.log.count(AGAIN[base]) < times:
                asked_until_answered(service.address)
            assert asked_until_answered(service.address)
        service.expect(AGAIN[base])
    assert service.log.count("was shut down by a process of the service") == len(again)


def test_who_has_its_path(tmp_path: Path) -> None:
    """A path that is bound anew has the mode and owner that the program had given it."""
    definitions = FROM.format("Shutting") + (
        "class Hooks:\n"
        "    def server_activate(self):\n"
        "        super().server_activate()\n"
        "        os.chmod('s', 0o640)\n"
    )
    source = script(definitions, bases="PreForkingUnixStreamServer", address="s", max_children=1)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        before = os.stat(tmp_path / "s")
        assert ask(service.address, b"both\n")
        assert asked_until_answered(service.address)
        after = os.stat(tmp_path / "s")
        service.expect(AGAIN["UnixStreamServer"])
    assert before.st_ino != after.st_ino
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


@pytest.mark.parametrize("how", [b"read", b"both"])
@pytest.mark.parametrize("bases", ["PreForkingUDPServer", "PreForkingMixIn, ThreadingUDPServer"])
def test_datagrams(bases: str, how: bytes, tmp_path: Path) -> None:
    """They come there still, each is given to a handler, and it is said once."""
    said = "datagrams come there still, but answers may fail until a restart"
    with Service(tmp_path, script(FROM.format("Datagrams"), bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        address = service.address
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(how, address)
        while said not in service.log:
            service.statistics()
        before = service.settled()["accepted"]
        for _ in range(50):
            if how == b"read":
                assert ask_datagram(address, b"pid")
            else:
                with socket.socket(type=socket.SOCK_DGRAM) as client:
                    client.sendto(b"pid", address)
        while service.statistics()["accepted"] < before + 50:
            pass
        assert service.settled()["accepted"] == before + 50
        service.expect(said)
        service.allow("could not finish the request from .*Broken")
    assert service.log.count("was shut down by a process of the service") == 1


def test_unix_datagrams(tmp_path: Path) -> None:
    """Where they are refused from then on, the path is bound anew as well."""
    said = AGAIN["UnixStreamServer"]
    source = script(FROM.format("Datagrams"), bases="PreForkingUnixDatagramServer", address="s", max_children=2)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        mine = str(tmp_path / "mine")
        assert ask_datagram(service.address, b"read", mine)
        while said not in service.log:
            service.statistics()
        os.unlink(mine)
        assert ask_datagram(service.address, b"pid", mine)
        service.expect(said)


def test_beside_another(tmp_path: Path) -> None:
    """A listener that cannot be mended, an abstract one, keeps nobody from the others, and is told to who asks whether
    the service is ready."""
    definitions = FROM.format("Shutting") + (
        "class Hooks:\n"
        "    def serve_forever(self, *args):\n"
        "        self.serve_also(PreForkingUnixStreamServer('\\0prefork-%d' % os.getpid(), Handler))\n"
        "        super().serve_forever(*args)\n"
    )
    metrics = str(tmp_path / "m")
    with Service(tmp_path, script(definitions, max_children=2, metrics_address=metrics)) as service:
        service.wait_ready(2)
        assert get(metrics, "/-/ready").status == 200
        with connect(f"\0prefork-{service.pid}") as client:
            assert client.ask(b"both")
        for _ in range(300):
            assert ask(service.address, b"pid\n")
        while "until a restart (invalid argument)" not in service.log:
            assert ask(service.address, b"pid\n")
        while get(metrics, "/-/ready").status != 503:
            assert ask(service.address, b"pid\n")
        service.expect("no new client can connect there until a restart")
    assert service.log.count("was shut down by a process of the service") == 1
    assert "trying again every" not in service.log
