"""What a program opens in the master before the fork, once for the service: over a reload the new code has it."""

import fcntl
import socket
from pathlib import Path

import pytest

from tests.support.clients.connections import free_port
from tests.support.clients.controlling import ctl
from tests.support.programs.releases import AFTERWARDS, Released, numbered

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

OPENED = {
    "a server in a thread": "import tests.process.programs.second_port",
    "a lock": "import fcntl; lock = open('lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
}
KEPT = {
    "udp://127.0.0.1:{}": "second = socket.socket(type=socket.SOCK_DGRAM); second.bind(('127.0.0.1', PORT))",
    "127.0.0.1:{}": "second = socket.socket(); second.bind(('127.0.0.1', PORT)); second.listen()",
    "@prefork-{}": "second = socket.socket(socket.AF_UNIX); second.bind(f'\\0prefork-{PORT}'); second.listen()",
}


@pytest.fixture
def port() -> int:
    return free_port()


def reload(service: Released) -> tuple[int, str]:
    done = ctl(service.directory / "c", "reload")
    return done.returncode, done.stdout + done.stderr


def version(port: int) -> bytes:
    """Who answers at the second port."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        return client.recv(100)


@pytest.mark.parametrize("what", OPENED)
def test_it_is_opened_anew(what: str, port: int, tmp_path: Path) -> None:
    """Although each old worker has a copy, and lives on. A program that fails has not made it worse for the next."""
    opens = f"import os; os.environ['SECOND'] = RELEASE + ' {port}'\n{AFTERWARDS}{OPENED[what]}\n"
    with Released(tmp_path, numbered(1, opens), max_children=1, control_socket="c") as service:
        service.wait_ready(1)
        for number in (2, 3):
            service.release(numbered(number, opens))
            with service.hold():
                assert reload(service)[0] == 0
                assert what == "a lock" or version(port) == b"r%d" % number
            service.wait_ready(1, replaced=number - 1)
        service.expect("reload failed: the program left with status no")
        service.release(numbered(4, f"{AFTERWARDS}raise SystemExit('no')\n"))
        assert reload(service)[0] == 1
        if what == "a lock":
            with (tmp_path / "lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        service.release(numbered(5, opens))
        assert reload(service)[0] == 0
        assert service.answering() == "r5"
        assert what == "a lock" or version(port) == b"r5"


@pytest.mark.parametrize("name", KEPT)
def test_what_only_the_old_workers_could_let_go_of(name: str, port: int, tmp_path: Path) -> None:
    """The reload fails, and says which address it is, who has it, and what to do."""
    opens = f"import socket; PORT = {port}\n{AFTERWARDS}{KEPT[name]}\n"
    with Released(tmp_path, numbered(1, opens), max_children=1, control_socket="c") as service:
        service.wait_ready(1)
        service.expect("reload failed: the program failed: OSError")
        service.expect(r"(?s)Traceback .*OSError: \[Errno 98\]")
        status, said = reload(service)
        assert (status, f"the old workers still have {name.format(port)}, which the program" in said) == (1, True), said
        assert service.answering() == "r1"


@pytest.mark.parametrize("what", ["port", "lock"])
def test_a_rehearsal_that_takes_it(what: str, port: int, tmp_path: Path) -> None:
    """What the service has already is named, with the question that a program should ask."""
    takes = {
        "port": f"import socket; second = socket.create_server(('127.0.0.1', {port}))",
        "lock": "import fcntl; lock = open('lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    }
    name = {"port": f"127.0.0.1:{port}", "lock": str(tmp_path / "lock")}[what]
    with Released(tmp_path, numbered(1, takes[what] + "\n"), max_children=1, control_socket="c") as service:
        service.wait_ready(1)
        service.expect("(?s)reload failed: .*")
        status, said = reload(service)
        hint = f"; the service has {name} itself: take it only if not prefork.rehearsing()"
        assert (status, hint in said) == (1, True), said
