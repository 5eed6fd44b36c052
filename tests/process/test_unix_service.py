"""A service on a Unix socket seen from its control socket: its clients are processes, with or without a name."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.controlling import asked, ctl, looked_at, until
from tests.support.programs.service import HUNG, Service, script

ME = f"pid={os.getpid()} uid={os.getuid()}"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings: dict[str, Any] = {"max_children": 2, "control_socket": str(tmp_path / "c")}
    with Service(tmp_path, script(bases="PreForkingUnixStreamServer", address="s", **settings)) as service:
        service.wait_ready(2)
        yield service


def peers(service: Service) -> dict[int, list[str]]:
    found = until(looked_at, lambda: asked(service.directory / "c", "workers"))
    return {worker["pid"]: worker["peers"] for worker in found["workers"]}


def test_a_client_is_its_process(service: Service) -> None:
    """`workers` names the process that a worker serves, by pid and uid; a terminal is shown it too."""
    with service.hold() as held:
        (other,) = set(service.workers()) - {held.pid}
        assert peers(service) == {held.pid: [ME], other: []}
        assert until(lambda text: ME in text, lambda: ctl(service.directory / "c", "workers").stdout)
        assert asked(service.directory / "c", "status")["address"] == "s"


@pytest.mark.parametrize(("name", "shown"), [("\0prefork-test-{}\n", "@prefork-test-{}\n"), ("client-{}", "client-{}")])
def test_a_client_with_a_name(name: str, shown: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has bound its own socket, to a path or an abstract name, is called that; no cursor is moved."""
    monkeypatch.chdir(service.directory)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(HUNG)
        client.bind(name.format(os.getpid()))
        client.connect("s")
        client.sendall(b"pid\n")
        pid = int(client.recv(100))
        assert peers(service)[pid] == [shown.format(os.getpid())]
        said = repr(shown.format(os.getpid()))[1:-1]
        table = until(lambda text: said in text, lambda: ctl(service.directory / "c", "workers").stdout)
        assert len(table.splitlines()) == 3


def test_stacks(service: Service) -> None:
    """`stacks` finds the handler of the worker that serves."""
    with service.hold() as held:
        stacks = {worker["pid"]: worker["stacks"] for worker in asked(service.directory / "c", "stacks")["workers"]}
    assert {pid for pid, text in stacks.items() if "in handle" in text} == {held.pid}
