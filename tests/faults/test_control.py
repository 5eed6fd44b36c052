"""FAULTS.md "Outside", the control socket: broken frames, half-open and slow peers, another uid, the moment of bind."""

import contextlib
import json
import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from prefork.control import access
from prefork.control.access import ControlTerms
from tests.support.clients.connections import HUNG
from tests.support.clients.controlling import OTHER, answer, as_other, connected, open_folder
from tests.support.clients.scraping import get
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure
from tests.support.tools.proc import cpu_seconds, no_descriptor_left, nothing_for

FRAME_MAX = 65536  # bytes, as documented

FRAMES = 50_000
STATUS = b'{"verb":"status"}\n'
VERBS = (b"status", b"drain", b"stop", b"restart", b"scale", b"stacks", b"reload")


def client(path: Path, *, connected: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(HUNG)
    if connected:
        sock.connect(str(path))
    return sock


def first_answer(path: Path, line: bytes = STATUS) -> dict[str, Any]:
    with client(path) as sock, sock.makefile("rb") as file:
        sock.sendall(line)
        return dict(json.loads(file.readline()))


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


def broken(rng: random.Random) -> bytes:
    """A line that is no request, however near it comes."""
    verb = rng.choice(VERBS)
    return rng.choice([
        rng.randbytes(rng.randrange(1, 40)).replace(b"\n", b"") + b"\xff",
        b"[" * rng.randrange(1, 4000), b'{"verb":"%s","verb2":1}' % verb, b'{"verb":["%s"]}' % verb,
        b'{"verb":"%s"' % verb, b'"%s"' % verb, b'{"verb":"scale","workers":%d}' % rng.choice([-1, 0, 1 << 70]),
        b'{"verb":"scale","workers":NaN}', b'{"verb":"restart","slot":"1"}', b'{"verb":"\\ud800"}', b"9" * 5000, b"",
    ]) + b"\n"  # fmt: skip


def test_broken_frames(tmp_path: Path, rng: random.Random) -> None:
    """50,000 broken frames over and over at the cap of clients: none is accepted, nobody dies, requests are served."""
    path = tmp_path / "c"
    with Service(tmp_path, script(max_children=2, control_socket=str(path))) as service:
        service.wait_ready(2)
        before = service.workers()
        began, slowest, refused = monotonic(), 0.0, 0
        for _ in range(FRAMES // 1000):
            lines = [broken(rng) for _ in range(1000)]
            refused += all_refused(path, lines)
            asked = monotonic()
            with service.connect() as connection:
                assert int(connection.ask(b"pid")) in service.workers()
            slowest = max(slowest, monotonic() - asked)
        for _ in range(20):  # and what has no end, or ends in the middle
            with client(path) as sock:
                with contextlib.suppress(OSError):  # it closes while we send
                    sock.sendall(b"x" * (2 * FRAME_MAX))
                    assert not json.loads(sock.makefile("rb").readline())["ok"]
            with client(path) as sock:
                sock.sendall(STATUS[:9])
        assert refused == FRAMES
        assert first_answer(path)["ok"]
        assert service.workers() == before
        figure("broken frames", f"{refused} in {monotonic() - began:.1f} s, 0 accepted, 0 deaths")
        figure("slowest connection meanwhile", f"{slowest * 1000:.1f} ms")


def all_refused(path: Path, lines: list[bytes]) -> int:
    """How many of these lines are answered by an error; none may be by anything else."""
    with client(path) as sock, sock.makefile("rb") as answers:
        sender = threading.Thread(target=sock.sendall, args=(b"".join(lines),))
        sender.start()
        refused = sum(json.loads(answers.readline())["ok"] is False for _ in lines)
        sender.join()
    return refused


def flood(deaf: socket.socket) -> None:
    """Ask for as much as the kernel takes; it may be cut meanwhile."""
    with contextlib.suppress(OSError):
        while True:
            deaf.send(STATUS * 100)


def test_half_open_and_slow_peers(tmp_path: Path) -> None:
    """Silent clients, and one that asks on and on and never reads, are cut after five seconds. Meanwhile others are
    answered at once, though there are sixteen: for one more the longest silent one goes, and the master does not spin.
    """
    path = tmp_path / "c"
    with (
        Service(tmp_path, script(max_children=2, control_socket=str(path))) as service,
        contextlib.ExitStack() as stack,
    ):
        service.wait_ready(2)
        silent = [stack.enter_context(client(path)) for _ in range(15)]
        began = monotonic()
        for sock in silent[1::2]:
            sock.sendall(STATUS[:-2])
        deaf = stack.enter_context(client(path))
        deaf.setblocking(False)
        poll = select.poll()
        poll.register(deaf, 0)
        other, answers = stack.enter_context(connected(path))
        slowest, asked, cpu = 0.0, 0, cpu_seconds(service.pid)
        while not poll.poll(100):  # ms, until it is hung up: an input, how often somebody asks
            flood(deaf)
            since = monotonic()
            other.sendall(STATUS)
            assert answer(answers)["ok"]
            slowest, asked = max(slowest, monotonic() - since), asked + 1
            if asked == 1:
                assert silent[0].recv(1) == b""
            assert monotonic() < began + HUNG, "hung: a client that does not read is kept"
        deaf_for = monotonic() - began
        spent = cpu_seconds(service.pid) - cpu
        for sock in silent[1:]:
            assert sock.recv(1) == b""
        silent_for = monotonic() - began
        with service.connect() as connection:
            assert int(connection.ask(b"pid")) in service.workers()
    figure(
        "a client that does not read, and silent ones: cut after", f"{deaf_for:.2f} s, {silent_for:.2f} s", "5 to 6 s"
    )
    figure("an answer to another meanwhile, the slowest", f"{slowest * 1000:.1f} ms of {asked}", "500 ms")
    figure("CPU of the master meanwhile", f"{spent / deaf_for:.1%}", "20%")
    assert 4.9 < deaf_for < 6
    assert 4.9 < silent_for < 6
    assert slowest < 0.5
    assert spent < 0.2 * deaf_for


SHORT_S = 2.5  # an input: how long there is no descriptor


def test_no_descriptor_for_a_client(tmp_path: Path) -> None:
    """Out of descriptors the master says so once, does not spin at its control socket, and serves; its clients are
    answered after."""
    path = tmp_path / "c"
    with Service(tmp_path, script(max_children=1, control_socket=str(path))) as service:
        service.expect("could not accept on the control socket: too many open files")
        service.wait_ready(1)
        began = cpu_seconds(service.pid)
        with client(path, connected=False) as sock:
            with no_descriptor_left(service.pid):
                sock.connect(str(path))
                sock.sendall(STATUS)
                passed = nothing_for(SHORT_S, sock)
                with service.connect() as connection:
                    assert int(connection.ask(b"pid")) in service.workers()
                spent = cpu_seconds(service.pid) - began
                said = service.log.count("could not accept on the control socket: too many open files")
            lifted = monotonic()
            assert json.loads(sock.makefile("rb").readline())["ok"]
            took = monotonic() - lifted
        assert first_answer(path)["ok"]
    figure("no descriptor at the control socket: said", said, 1)
    figure("no descriptor at the control socket: CPU of the master", f"{spent / passed:.1%}", "5%")
    figure("no descriptor at the control socket: answered after", f"{took * 1000:.0f} ms", "1500 ms")
    assert said == 1
    assert spent < 0.05 * passed
    assert took < 1.5


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("settings", "may_look", "may_command"),
    [
        ({}, False, False),
        ({"control_allow_read": str(OTHER)}, True, False),
        ({"control_allow": str(OTHER)}, True, True),
    ],
)
def test_another_uid(settings: dict[str, Any], may_look: bool, may_command: bool, folder: Path, tmp_path: Path) -> None:
    """The kernel keeps another user out by the mode; where the mode lets him in, only the lists do: 0 accepted."""
    path = folder / "c"
    source = script(max_children=2, control_socket=str(path), **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        assert as_other(path, "status") == {"errno": 13}
    source = script(max_children=2, control_socket=str(path), control_mode=0o666, **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        found = {verb: as_other(path, verb).get("ok", False) for verb in ("status", "version", "scale", "drain")}
        assert found == {"status": may_look, "version": may_look, "scale": may_command, "drain": may_command}
        if may_command:
            assert service.wait_exit() == 0
        else:
            assert first_answer(path)["result"]["workers"]["idle"] == 2
            assert "may " in service.log


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_requests_are_counted(folder: Path, tmp_path: Path) -> None:
    """A scrape has every request by command and result: done, denied, not understood."""
    path = folder / "c"
    source = script(max_children=2, control_socket=str(path), control_mode=0o666, control_allow_read=str(OTHER),
                    metrics_address=str(tmp_path / "m"))  # fmt: skip
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        for line in (STATUS, b'{"verb":"scale","workers":2}\n', STATUS):
            assert first_answer(path, line)["ok"]
        assert as_other(path, "status")["ok"]
        for _ in range(3):
            assert not as_other(path, "scale")["ok"]
        for verb in ("status", "drain"):
            assert not as_other(path, verb, OTHER - 1).get("ok")  # it may be turned away before it has asked
        assert all_refused(path, [b"no frame\n", b"{}\n", b'{"verb":"restart","slot":"1"}\n', b"[]\n"]) == 4
        found = get(str(tmp_path / "m")).samples
    counted = {name: value for name, value in found.items() if value and "control_requests" in name}
    assert counted == {
        f'prefork_control_requests_total{{command="{command}",result="{result}"}}': times
        for command, result, times in [
            ("status", "ok", 3), ("scale", "ok", 1), ("scale", "denied", 3),
            ("restart", "bad", 1), ("other", "denied", 2), ("other", "bad", 3),
        ]
    }  # fmt: skip


def test_mode_at_every_moment(tmp_path: Path) -> None:
    """A watcher that looks all the time, under umask 0, never sees a mode beyond the one asked for."""
    seen, path, stop = {0o600: 0, 0o660: 0}, tmp_path / "c", threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(path).st_mode & 0o777
                seen[mode] = seen.get(mode, 0) + 1

    before = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(2000):
            listener = access.bind_control(ControlTerms(str(path), 0o660, None, frozenset(), frozenset()))
            listener.unlink()
            listener.close()
    finally:
        stop.set()
        watcher.join()
        os.umask(before)
    figure("modes seen of a path asked for with 0660", {f"{mode:04o}": count for mode, count in seen.items()})
    assert set(seen) == {0o600, 0o660}
    assert seen[0o600], "the watcher never saw the time before the path was widened"
