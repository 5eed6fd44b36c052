"""deploy/haproxy: three hosts behind a real HAProxy, released, restarted, killed and cut off under load."""

import shutil
import signal
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import Connection, Load, connect, free_port
from tests.support.hosts.namespaces import HUNG, Host, haproxy, hosts, possible
from tests.support.tools.figures import figure

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
CLIENTS, PROCESSES = 6, 2
APP = Path(__file__).parent / "programs" / "released_app.py"
RIGHT = rb"(one|two|three) \d+\n"
OPTIONS = ("--max-children", "8", "--drain-delay", "2s", "--graceful-timeout", "10s")

pytestmark = pytest.mark.skipif(
    not possible(), reason="needs root, network namespaces, and Debian's packages haproxy and iproute2"
)


def configuration(three: list[Host], port: int) -> str:
    """The file as it is, but for the addresses, and for how long a host that says nothing is believed."""
    text = CONFIG.read_text().replace("bind 127.0.0.1:9999", f"bind 127.0.0.1:{port}")
    text = text.replace("timeout server 60s", "timeout server 5s")
    for number, host in enumerate(three, 1):
        assert f"192.0.2.{number}:9999" in text
        text = text.replace(f"192.0.2.{number}:9999", f"{host.address}:9999")
    return text


def wait_released(three: list[Host], release: str) -> None:
    """Until each host answers with this release, asked directly."""
    for host in three:
        deadline = monotonic() + HUNG
        while True:
            with connect((host.address, 9999)) as client:
                if client.ask(b"?").startswith(release.encode() + b" "):
                    break
            assert monotonic() < deadline, f"hung: {host.name} is not of release {release}"


def test_three_hosts(tmp_path: Path) -> None:
    """A rolling release and a rolling restart lose no connection; a host that dies or is cut off, what it held."""
    shutil.copy(APP, tmp_path / "app.py")
    (tmp_path / "release").write_text("one")
    port = free_port()
    with hosts(3, tmp_path) as three:
        for host in three:
            host.start("app:Who", *OPTIONS)
        with haproxy(configuration(three, port), tmp_path, port):
            address = ("127.0.0.1", port)
            with connect(address) as first:
                assert first.ask(b"?").startswith(b"one ")
            with Load(address, CLIENTS, right=RIGHT, processes=PROCESSES) as load:
                load.wait_answered()
                (tmp_path / "release").write_text("two")
                for host in three:
                    host.signal(signal.SIGHUP)
                    wait_released([host], "two")
                (tmp_path / "release").write_text("three")
                for host in three:
                    assert host.stop() == 0
                    host.start("app:Who", *OPTIONS)
                wait_released(three, "three")
            figure("failed over 3 reloads and 3 restarts", f"{load.tally.failures} of {load.tally.opened}", 0)
            assert load.tally.failures == 0, load.tally.failed
            loses_what_it_held(address, three, three[0], three[0].kill, "a host killed")
            loses_what_it_held(address, three[1:], three[1], three[1].cut_off, "a host cut off")


def loses_what_it_held(address: tuple[str, int], alive: list[Host], host: Host, act: object, what: str) -> None:
    """Connections held over every host: after the act those of this host are gone, the others answer, new ones too."""
    held = [connect(address) for _ in range(3 * len(alive))]
    for client in held:
        client.pid = int(client.ask(b"?").split()[-1])
    theirs = [client for client in held if host.runs(client.pid)]
    assert 0 < len(theirs) < len(held), "the balancer spreads them"
    with Load(address, CLIENTS, right=RIGHT) as load:
        load.wait_answered(CLIENTS)
        assert callable(act)
        act()
        for client in held:
            client.send(b"?")
        broken = [client for client in held if not answered(client)]
        load.wait_answered(4 * CLIENTS)
    figure(what, f"{len(broken)} of {len(held)} held, {load.tally.failures} of {load.tally.opened} short ones",
           f"{len(theirs)}, and at most one in flight for each of {CLIENTS} clients")  # fmt: skip
    assert broken == theirs
    assert load.tally.failures <= CLIENTS, load.tally.failed


def answered(client: Connection) -> bool:
    """Say if an answer comes; closes the connection."""
    with client:
        answer = client.answer_or_end()
        assert answer is None or answer.split()[-1] == b"%d" % client.pid, answer
        return answer is not None
