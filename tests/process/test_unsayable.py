"""Names, paths and arguments that are no text: bytes that are no UTF-8, a zero, half of a surrogate pair, line ends."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.clients.controlling import asked
from tests.support.clients.scraping import get
from tests.support.hosts.manager import Manager
from tests.support.programs.releases import AFTERWARDS, DEFINITIONS, Released, numbered
from tests.support.programs.service import script

NAME = "zero \0, half \udcff, end \n"
SAID = r"zero \x00, half \udcff, end \n"
FAILS = "class Hooks(Told):\n    def worker_started(self): raise RuntimeError('half \\udcff')\n"
FAILS_LATER = "class Hooks(Told): pass\n" + AFTERWARDS + "raise RuntimeError('half \\udcff')\n"


def test_what_is_no_text_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of such a name, at such a path, with such an argument starts, is scraped, asked and reloaded; whatever
    fails in such words is logged, and told to the service manager."""
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(b"s\xe9")
    settings = {"service_name": NAME, "metrics_address": "m", "control_socket": "c", "max_children": 1}
    source = script(
        "logging.getLogger().addHandler(logging.FileHandler('own.log', encoding='utf-8'))\n" + DEFINITIONS,
        bases="PreForkingUnixStreamServer", address=path, **settings,
    )  # fmt: skip
    (tmp_path / "service.py").write_text(source)
    with Manager(tmp_path) as manager, Released(tmp_path, argv=["service.py", "\udcff"], env=manager.env()) as service:
        service.expect(
            r"reload failed: a worker could not start: exit status 1\n(.*\n)*.*RuntimeError: half",
            r"(?s)boot_failed.*RuntimeError: half",
            r"reload failed: the program failed: RuntimeError: half \\udcff",
            r"(?s)Traceback.*RuntimeError: half",
        )
        service.wait_ready(1)
        manager.wait("READY=1")
        assert b'listener="s\\\\udce9"' in get("m").body
        status = asked(tmp_path / "c", "status")
        assert (status["name"], status["address"]) == (SAID, r"s\udce9")
        service.release(FAILS)
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        service.release(FAILS_LATER)
        service.signal(signal.SIGHUP)
        manager.wait(r"STATUS=degraded: the program failed: RuntimeError: half \udcff")
        assert asked(tmp_path / "c", "status")["name"] == SAID
        service.release(numbered(4))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r4"
        title = Path(f"/proc/{service.pid}/cmdline").read_bytes()
        assert title.startswith(f"prefork: master {SAID}".encode())
    assert "Logging error" not in service.log
    assert r"listening on s\udce9" in (tmp_path / "own.log").read_text()
