"""A conversation over UDP in a pool: it stays with one worker, and nothing that was queued is lost."""

import os
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.process.programs.tftp import ACK, BLOCK, DATA, READ
from tests.support.clients.connections import HUNG
from tests.support.programs.releases import Released
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

TFTP = "from tests.process.programs.tftp import Handler"
WORKERS = 3
TRANSFERS = 5
BASES = ["PreForkingUDPServer", "PreForkingMixIn, ThreadingUDPServer"]


def source(definitions: str = TFTP, bases: str = BASES[0], **settings: Any) -> str:
    return script(definitions, bases=bases, max_children=WORKERS, peer_affinity=True, **settings)


class Client:
    """One that reads files, and says in between what is to be done there."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.settimeout(HUNG)
        self.sock.connect(("127.0.0.1", address[1]))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def pid(self) -> int:
        """Of the worker that hears this client."""
        self.sock.send(b"pid?")
        return int(self.sock.recv(100))

    def begin(self, name: str) -> bytes:
        self.sock.send(struct.pack("!H", READ) + name.encode() + b"\0octet\0")
        return self._block(1)

    def go_on(self, whole: bytes) -> bytes:
        block = 1
        while len(whole) == block * BLOCK:
            self.sock.send(struct.pack("!HH", ACK, block))
            block += 1
            whole += self._block(block)
        self.sock.send(struct.pack("!HH", ACK, block))
        return whole

    def _block(self, number: int) -> bytes:
        answer = self.sock.recv(1000)
        assert struct.unpack("!HH", answer[:4]) == (DATA, number), answer
        return answer[4:]


def to_each(service: Service, signum: int, pids: list[int]) -> None:
    for pid in pids:
        service.signal(signum, pid)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("bases", BASES)
def test_transfers(bases: str, host: str, tmp_path: Path) -> None:
    """Each to its end, while the workers of others are killed in the midst of it, and over a reload in between."""
    (tmp_path / "file").write_bytes(content := os.urandom(40 * BLOCK + 7))
    with Released(tmp_path, source=source(bases=bases, address=(host, 0))) as service:
        service.wait_ready(WORKERS)
        killed = 0
        for number in range(TRANSFERS):
            with Client(service.address) as client:
                mine = client.pid()
                begun = client.begin("file")
                others = [pid for pid in service.workers() if pid != mine]
                to_each(service, signal.SIGKILL, others)
                killed += len(others)
                service.wait_ready(WORKERS, killed=killed)
                assert client.go_on(begun) == content
                assert client.pid() == mine
            if number == 2:
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=1)
                service.wait_ready(WORKERS, replaced=WORKERS)  # and none of the old ones takes a last datagram


@pytest.mark.skipif(not shutil.which("curl"), reason="needs Debian's package curl")
def test_transfers_by_curl(tmp_path: Path) -> None:
    """A real client, which knows nothing of workers."""
    (tmp_path / "file").write_bytes(content := os.urandom(200 * BLOCK))
    with Service(tmp_path, source()) as service:
        service.wait_ready(WORKERS)
        for _ in range(TRANSFERS):
            url = f"tftp://127.0.0.1:{service.address[1]}/file"
            assert subprocess.check_output(["curl", "-s", url], timeout=HUNG) == content


def test_every_place_has_one_worker(tmp_path: Path) -> None:
    """Whatever became of the workers before: each client is heard by one, and each worker by some."""
    with Released(tmp_path, source=source(control_socket="c")) as service:
        clients = [Client(service.address) for _ in range(40)]
        service.wait_ready(WORKERS)
        ends = {"killed": 0, "replaced": 0}
        for act in ("nothing", "kill", "restart", "reload", "kill two", "restart", "reload", "kill all", "restart"):
            if act.startswith("kill"):
                doomed = service.workers()[: {"kill": 1, "kill two": 2, "kill all": 3}[act]]
                to_each(service, signal.SIGKILL, doomed)
                ends["killed"] += len(doomed)
            elif act != "nothing":
                service.signal(signal.SIGHUP if act == "reload" else signal.SIGUSR2)
                ends["replaced"] += WORKERS
            service.wait_ready(WORKERS, **ends)
            heard = [{client.pid() for _ in range(3)} for client in clients]
            assert all(len(pids) == 1 for pids in heard), act
            assert set.union(*heard) == set(service.workers()), act
        for client in clients:
            client.sock.close()


HELD = """
class Handler(DatagramRequestHandler):
    def handle(self):
        if self.packet == b"hold":
            tell("held", pid=os.getpid())
            while True: time.sleep(60)
        self.wfile.write(self.packet)
"""


def test_what_is_queued_at_a_worker_outlives_it(tmp_path: Path) -> None:
    """It waits at the socket for the worker that has the place next."""
    with Service(tmp_path, source("import time\n" + HELD)) as service, Client(service.address) as client:
        service.wait_ready(WORKERS)
        client.sock.send(b"hold")
        pid = service.wait("held")["pid"]
        questions = [b"%d" % number for number in range(20)]
        for question in questions:
            client.sock.send(question)
        service.signal(signal.SIGKILL, pid)
        assert [client.sock.recv(100) for _ in questions] == questions


def test_the_end_answers_what_is_queued(tmp_path: Path) -> None:
    """At each socket; and the port is free afterwards."""
    with Service(
        tmp_path, source("class Handler(DatagramRequestHandler):\n    def handle(self): self.wfile.write(b'x')")
    ) as service:
        service.wait_ready(WORKERS)
        clients = [Client(service.address) for _ in range(30)]
        to_each(service, signal.SIGSTOP, service.workers())
        for client in clients:
            client.sock.send(b"question")
        service.signal(signal.SIGTERM)
        to_each(service, signal.SIGCONT, service.workers())
        for client in clients:
            assert client.sock.recv(9) == b"x"
            client.sock.close()
        assert service.wait_exit() == 0
        with socket.socket(type=socket.SOCK_DGRAM) as another:
            another.bind(service.address)


def test_their_number_stays(tmp_path: Path) -> None:
    """Another one is refused: by signals, and by a reload, for there is a socket for each."""
    with Released(tmp_path, source=source()) as service:
        service.wait_ready(WORKERS)
        service.signal(signal.SIGTTIN)
        service.signal(signal.SIGTTOU)
        program = tmp_path / "program.py"
        program.write_text(program.read_text().replace("'max_children': 3", "'max_children': 4"))
        service.expect("could not change max_children from 3 to 4 by a reload: it needs a restart")
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        assert len(service.workers()) == WORKERS
