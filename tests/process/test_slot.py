"""server.slot: the number of a worker, in it and in what it starts."""

import signal
from pathlib import Path

import pytest

from prefork.settings.sources import SLOT_VARIABLE
from tests.support.clients.connections import ask
from tests.support.programs.command import running
from tests.support.programs.service import Service, script

ASKED = "from tests.process.programs.slots import Handler, Hooks"
APP = """
import os
from prefork import StreamRequestHandler

class Asks(StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{self.server.slot} {os.environ['PREFORK_SLOT']}\\n".encode())
"""
POOLS: dict[str, dict[str, int]] = {
    "PreForkingTCPServer": {},
    "PreForkingMixIn, ThreadingTCPServer": {"max_threads": 2},
    "PreForkingMixIn, ForkingTCPServer": {},
}


@pytest.mark.parametrize("bases", POOLS)
def test_slot_of_a_worker(bases: str, tmp_path: Path) -> None:
    """Each worker that lives has another one, from 1; its handlers and what they start are told it, the master has
    none, and a worker that is killed leaves it to the next."""
    with Service(tmp_path, script(ASKED, bases=bases, max_children=3, **POOLS[bases])) as service:
        service.wait_ready(3)
        told = service.wait_each("slot", 3)
        assert sorted(fact["slot"] for fact in told) == [1, 2, 3]
        assert all(fact["variable"] == str(fact["slot"]) for fact in told)
        slot, started = ask(service.address, b"slot\n").split()
        assert slot == started
        assert slot in (b"1", b"2", b"3")
        if bases == "PreForkingTCPServer":
            after = service.mark()
            killed = next(fact for fact in told if fact["slot"] == 2)
            service.signal(signal.SIGKILL, killed["pid"])
            assert service.wait("slot", after=after)["slot"] == 2
    assert [(f["slot"], f["variable"]) for f in service.facts if f["event"] in ("master", "after")] == [
        (None, None)
    ] * 2


@pytest.mark.once
@pytest.mark.parametrize("bases", ["ThreadingTCPServer", "ForkingTCPServer"])
def test_no_slot_without_a_pool(bases: str, tmp_path: Path) -> None:
    """A plain server has none, nor have its children."""
    with Service(tmp_path, script(ASKED.replace("Hooks", "Plain as Hooks"), bases=bases)) as service:
        assert ask(service.address, b"slot\n") == b"None None\n"


@pytest.mark.once
def test_single_is_worker_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --single the process is the only worker; and a service that a worker starts, under its PREFORK_SLOT, is not
    refused for that variable."""
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.setenv(SLOT_VARIABLE, "7")
    with running(["run", "app:Asks", "--bind", "127.0.0.1:0", "--single"], cwd=tmp_path) as service:
        assert ask(("127.0.0.1", service.port), b"") == b"1 1\n"


def test_the_name_is_the_programs_where_it_uses_it(tmp_path: Path) -> None:
    """A program that keeps something of its own in `self.slot` has that."""
    mine = (
        "class Hooks(Hooks):\n    slot = 'class'\n    def worker_started(self):\n        self.slot = [self.slot]\n"
        "        super().worker_started()\n        tell('mine', slot=self.slot)\n"
    )
    with Service(tmp_path, script(mine, max_children=1)) as service:
        assert service.wait("mine")["slot"] == ["class"]
