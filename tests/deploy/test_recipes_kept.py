"""The recipes whose clients stay connected: no client notices a release, and a kill costs what was in hand."""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import connect
from tests.support.clients.devices import Fleet
from tests.support.programs.recipes import Asking, Recipe, recipe
from tests.support.tools.figures import figure

IN_HAND = 2  # connections that a worker may have when it is killed: one that it serves, one that lingers


class Pool:
    """A pool of clients of redis-py, which never tries again by itself. `made` are the connections so far."""

    def __init__(self, port: int, **options: Any) -> None:
        import redis  # every other Python reads this file, and has no redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self.made: list[object] = []
        made: Any = self._made  # with the connection, whatever its type says
        self.client: Any = redis.Redis(
            port=port, redis_connect_func=made, retry=Retry(NoBackoff(), 0), retry_on_error=[], **options
        )  # fmt: skip

    def _made(self, connection: Any) -> None:
        self.made.append(connection)
        connection.on_connect()

    def use(self, connections: int) -> None:
        """Have so many in use at once."""
        barrier = threading.Barrier(connections)

        def run() -> None:
            with self.client.client() as mine:  # a connection of its own
                mine.incr("used")
                barrier.wait()
                mine.incr("used")

        threads = [threading.Thread(target=run) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Recipe]:
    with recipe("redis_service:Redis", "127.0.0.1:0", REDIS_SERVICE_FILE=str(tmp_path / "db")) as run:
        yield run


@pytest.mark.parametrize("protocol", [2, 3])
def test_idle_redis_clients_live_through_a_release(protocol: int, service: Recipe) -> None:
    """More pooled clients than there are workers, and not a new connection over two reloads: each has still its
    database and its protocol."""
    pool = Pool(service.port, db=7, protocol=protocol)
    pool.use(20)
    assert len(pool.made) == 20
    for _ in range(2):
        service.reload()
        pool.use(20)
    assert len(pool.made) == 20
    assert pool.client.get("used") == b"120"
    assert pool.client.get("unused") is None
    with connect(("127.0.0.1", service.port)) as other:
        assert other.ask(b"get used") == b"$-1\r"  # of base 0
    pool.client.close()


def test_busy_redis_clients_live_through_a_release(service: Recipe) -> None:
    """Threads that share a pool, and pipelines, over reloads: nothing fails, nothing is counted twice, and no client
    connects again."""
    pool = Pool(service.port, db=1)

    def piped() -> None:
        with pool.client.pipeline(transaction=False) as pipe:
            for _ in range(20):
                pipe.incr("n")
            first, *_, last = pipe.execute()
        assert last >= first + 19

    clients = [Asking(lambda: pool.client.incr("n")), Asking(lambda: pool.client.incr("n")), Asking(piped)]
    with clients[0], clients[1], clients[2]:
        for _ in range(3):
            service.reload()
    assert [client.failed for client in clients] == [[], [], []]
    assert len(pool.made) <= len(clients)
    counted = clients[0].answered + clients[1].answered + 20 * clients[2].answered
    assert int(pool.client.get("n") or 0) == counted
    figure("INCR over three reloads, over so many connections", f"{counted}, {len(pool.made)}")
    pool.client.close()


def test_a_redis_client_that_says_half(service: Recipe) -> None:
    """A command in two pieces, and a pipeline cut within a command, are answered."""
    with connect(("127.0.0.1", service.port)) as client:
        client.sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$")
        client.sock.sendall(b"5\r\nvalue\r\n*2\r\n$3\r\nGE")
        assert client.answer() == b"+OK\r"
        client.sock.sendall(b"T\r\n$1\r\nk\r\n")
        assert (client.answer(), client.answer()) == (b"$5\r", b"value\r")


# Devices.


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Recipe]:
    with recipe("device_gateway:Gateway", "127.0.0.1:0", GATEWAY_FILE=str(tmp_path / "readings")) as run:
        yield run


def judge(fleet: Fleet, file: Path) -> None:
    """What was answered is there, once; what was sent again perhaps twice. Each device is told as gone."""
    readings: defaultdict[str, Counter[int]] = defaultdict(Counter)
    gone: Counter[str] = Counter()
    for row in map(json.loads, file.read_text().splitlines()):
        if "gone" in row:
            gone[row["device"]] += 1
        else:
            readings[row["device"]][int(row["value"])] += 1
    for device in fleet.devices:
        kept = readings[device.name]
        assert set(kept) == set(range(1, device.acknowledged + 1))
        assert {number for number, times in kept.items() if times > 1} <= set(device.sent_again)
        assert 1 <= gone[device.name] <= device.connections
    figure("devices, readings", f"{len(fleet.devices)}, {sum(device.acknowledged for device in fleet.devices)}")


def test_a_thousand_devices_over_releases(gateway: Recipe, tmp_path: Path) -> None:
    """1,000 devices at two workers, some on a line that brings half a reading: none notices three reloads."""
    with Fleet(gateway.port, 1000, pause=1.0) as fleet:
        for _ in range(3):
            gateway.reload()
    assert [device for device in fleet.devices if device.connections != 1] == []
    gateway.end()  # what is to be written is there
    judge(fleet, tmp_path / "readings")


def test_a_thousand_devices_over_kills(gateway: Recipe, tmp_path: Path) -> None:
    """Each worker is killed: it takes the connections that it has in hand, and no other device notices."""
    with Fleet(gateway.port, 1000, pause=1.0) as fleet:
        gateway.kill_each_worker()
        gateway.reload()
    lost = sum(device.connections - 1 for device in fleet.devices)
    figure("connections lost by two kills", lost, 2 * IN_HAND)
    assert lost <= 2 * IN_HAND
    gateway.end()  # what is to be written is there
    judge(fleet, tmp_path / "readings")


def test_a_device_that_cannot_log_in(gateway: Recipe, tmp_path: Path) -> None:
    """Without the secret nothing is taken, and the connection ends; so it does after a line that is too long."""
    for line in (b"login d1 0000", b"temperature 21.5", b"x" * 5000):
        with connect(("127.0.0.1", gateway.port)) as device:
            assert device.answer().startswith(b"hello ")
            device.send(line)
            assert device.answer_or_end() in (b"no", b"bye", None)  # a reset, where more was said than is read
    assert (tmp_path / "readings").read_text() == ""


@pytest.fixture(autouse=True)
def no_byte_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the recipes stays as it is."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield
    assert threading.active_count() == 1
