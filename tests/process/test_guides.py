"""The examples of every page run, and do what the page says.

Python is imported, and its tests run; what a page shows of a terminal is typed; files are where it puts them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.testing import running
from tests.support.clients.connections import ask, free_port
from tests.support.programs import command
from tests.support.programs.service import HUNG
from tests.support.tools.certificates import client_context, make_certificate
from tests.support.tools.guides import PAGES, ROOT, Block, blocks
from tests.support.tools.transcript import Session, matches, normal, session

FRONT, WRITING = ROOT / "README.md", ROOT / "prefork" / "README.md"

pytestmark = pytest.mark.once  # ruff reads the examples


def python(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


TYPED = [page for page in PAGES if any(block.language == "console" for block in blocks(page))]


def source(page: Path) -> str:
    """The Python of a page as one module, each line on the line that it has on the page."""
    lines: list[str] = []
    for block in python(page):
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


def run(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = line.replace("python", sys.executable).split()
    return subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, timeout=HUNG)


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_python(page: Path, tmp_path: Path) -> None:
    """The Python of a page is complete: every name in it is defined, it can be imported, and its own tests pass.

    An example may repeat what another has imported.
    """
    (tmp_path / "page.py").write_text(source(page))
    checked = run("python -m ruff check --isolated --no-cache --select=E9,F --ignore=F811 page.py", tmp_path)
    assert checked.returncode == 0, checked.stdout
    tested = run("python -m pytest -q -p no:cacheprovider page.py", tmp_path)
    has_tests = "def test_" in source(page)
    assert tested.returncode == (0 if has_tests else pytest.ExitCode.NO_TESTS_COLLECTED), tested.stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Session]:
    """A terminal in a folder with the front page's app.py, which the guides go on with, and releases of it."""
    ports = {"9999": str(free_port()), "9465": str(free_port())}
    paths = {"/run/upper.sock": str(tmp_path / "upper.sock"), "/srv/app": str(tmp_path / "app")}
    with session(tmp_path, ports | paths) as terminal:
        for folder in (".", "app/releases/41", "app/releases/42"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for block in python(FRONT):
                terminal.write(f"{folder}/{block.file}", block.text)
        (tmp_path / "app" / "current").symlink_to("releases/41")
        yield terminal


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(ROOT)))
def test_terminal(page: Path, terminal: Session) -> None:
    """What a page shows of a terminal is what one sees, numbers apart; the service of the first command among it."""
    if page == FRONT:
        terminal.serve(re.findall(r"&& \.venv/bin/(prefork run .*)", page.read_text())[0], ["…", "…running"])
    for block in blocks(page):
        if block.file:
            terminal.write(block.file, block.text)
        elif block.language == "console":
            terminal.follow(block.text)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["up 2h03m, 12 of 1024"], ["up 1.4s, 0 of 1024"], True),
        (["1 idle"], ["1 busy"], False),
        (["one", "…", "two"], ["one", "half", "more", "two"], True),
        (["one", "two"], ["one", "half", "two"], False),
        (["…ready"], ["at last ready"], True),
        ([], ["error"], False),
    ],
)
def test_a_difference_is_seen(shown: list[str], printed: list[str], same: bool) -> None:
    """The comparison forgives numbers and what `…` stands for, and nothing else."""
    assert matches(shown, printed) is same


@pytest.mark.parametrize(
    ("server", "answer"),
    [("LookupServer", b"HELLO\n"), ("Gateway", b"1 hello\n"), ("Feeds", b"ok hello\n")],
    ids=["state", "kept", "threads"],
)
def test_servers(server: str, answer: bytes) -> None:
    """The servers that prefork/README.md shows answer from a pool."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(source(WRITING), names)
    with running(names[server]) as pool:
        assert ask(pool.address, b"hello\n") == answer


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of "TLS" answers over TLS, also while another client says nothing."""
    make_certificate(tmp_path)
    monkeypatch.chdir(tmp_path)
    example = next(block.text for block in python(WRITING) if block.file == "tls_upper.py")
    names: dict[str, Any] = {"__name__": "tls_upper"}
    exec(example, names)
    trust = client_context(tmp_path, certified=False)
    with running(names["Server"], max_children=2) as pool, socket.create_connection(pool.address):
        for _ in range(4):
            with trust.wrap_socket(socket.create_connection(pool.address, HUNG), server_hostname="localhost") as client:
                client.sendall(b"hello\n")
                assert client.recv(6) == b"HELLO\n"


def test_a_wrapped_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site of "TLS" serves openssl's client over HTTPS, not without a certificate, nor in plain text, while another
    client says nothing."""
    make_certificate(tmp_path)
    (tmp_path / "clients.pem").hardlink_to(tmp_path / "cert.pem")
    (tmp_path / "page.html").write_text("the page")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(source(WRITING), names)
    with running(names["SecureSite"], max_children=1) as pool, socket.create_connection(pool.address):
        where = "%s:%d" % pool.address
        argv = ["openssl", "s_client", "-connect", where, "-CAfile", "cert.pem", "-verify_return_error", "-quiet"]
        for shown in (["-cert", "cert.pem", "-key", "key.pem"], []):
            asked = subprocess.run(
                [*argv, *shown], input="GET /page.html HTTP/1.0\r\n\r\n", capture_output=True, text=True, timeout=HUNG
            )
            assert ("the page" in asked.stdout) is bool(shown), asked.stderr
        answered = b""
        with contextlib.suppress(OSError):  # it may be reset before it has sent all, or read what it was told
            answered = ask(pool.address, b"GET /page.html HTTP/1.0\r\n\r\n")
        assert b"the page" not in answered


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_access_log_is_as_it_is_shown(log_format: str, tmp_path: Path) -> None:
    """The record of a request that deploy/operating.md shows is what the service writes, numbers apart."""
    page = ROOT / "deploy" / "operating.md"
    told = [block.text for block in blocks(page) if block.language == log_format]
    shown = next(text for text in told if "prefork.access" in text).splitlines()[-1]
    options = f"--bind 127.0.0.1:0 --max-children 1 --access-log yes --log-format {log_format}"
    with command.running(["run", "prefork.examples:Upper", *options.split()], cwd=tmp_path) as service:
        assert ask(("127.0.0.1", service.port), b"hello\n") == b"HELLO\n"
        service.ended(signal.SIGTERM)
    record = next(line for line in service.lines if "prefork.access" in line)
    if log_format == "json":
        assert list(json.loads(record)) == list(json.loads(shown))
    else:
        assert normal(record) == normal(shown)
