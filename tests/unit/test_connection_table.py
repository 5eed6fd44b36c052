"""The connection table: who is let in, by whom it is counted, and what a claim does beside others that ask."""

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.sockets.networks import client_of
from prefork.workers import connection_table as module
from prefork.workers.connection_table import (
    ASKS,
    ASKS_FOR_CLIENT,
    BLOCK,
    BLOCKS,
    BLOCKS_OPENED,
    COUNTED,
    PATIENCE_S,
    TIE_S,
    WORKER_ROWS,
    ConnectionLimits,
    ConnectionTable,
    pack_connections,
    table_of_connections,
)

ONE, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 1)


@pytest.fixture
def table() -> Iterator[ConnectionTable]:
    table = ConnectionTable()
    table.expect({20})
    yield table
    table.close()


@pytest.fixture(autouse=True)
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The things that others do while a claim waits, one at each look."""
    acts: list[Callable[[], object]] = []
    monkeypatch.setattr(module, "sleep", lambda seconds: acts.pop(0)() if acts else None)
    monkeypatch.setattr(module, "monotonic", lambda: 0.0)  # patience has no end
    return acts


def lane() -> memoryview:
    return memoryview(bytearray(8)).cast("Q")


def limits(table: ConnectionTable, number: int, **most: Any) -> ConnectionLimits:
    return ConnectionLimits(table, number, client_of, **most)


def enters(limits: ConnectionLimits, address: Any = ONE, at: memoryview | None = None) -> memoryview | None:
    """The lane of a connection that is admitted."""
    at = lane() if at is None else at
    kept.append(at)
    if limits.admits(at) and limits.admits_client(at, address):
        return at
    limits.leave(at)
    return None


kept: list[memoryview] = []  # a lane lives as long as its worker


def test_a_client_has_its_places_in_the_whole_pool(table: ConnectionTable) -> None:
    """Over all workers and lanes; another client has its own, and a place that is left is free."""
    first, second = (limits(table, number, most_of_client=3) for number in (1, 7))
    taken = [enters(first), enters(second), enters(second)]
    assert None not in taken
    assert enters(first) is enters(second) is None
    assert enters(first, OTHER) is not None
    assert taken[1] is not None
    second.leave(taken[1])
    second.leave(taken[1])
    assert enters(first) is not None
    assert enters(second) is None


def test_the_pool_has_its_places_for_all_clients(table: ConnectionTable) -> None:
    first, second = (limits(table, number, most=2) for number in (1, 2))
    taken = enters(first, ONE)
    assert enters(second, OTHER) is not None
    assert enters(first, ("192.0.2.3", 1)) is enters(second, "") is None
    assert taken is not None
    first.leave(taken)
    assert enters(second, "") is not None


def test_one_limit_counts_for_the_other(table: ConnectionTable) -> None:
    """A worker of a generation, or for a listener, that asks for less is counted by one that asks for more."""
    assert enters(limits(table, 1, most_of_client=5), "") is not None
    assert enters(limits(table, 2, most=1)) is None


def test_listeners_without_a_limit_count_for_those_with_one(table: ConnectionTable) -> None:
    """They admit everybody, whom the others see; by the client where somebody limits that."""
    limited, free = limits(table, 1, most=4, most_of_client=2), limits(table, 2, counts_clients=True)
    assert None not in [enters(free) for _ in range(3)]
    assert enters(limited) is None
    assert enters(limited, OTHER) is not None
    assert enters(limited, OTHER) is None
    assert enters(free) is not None
    only_in_all = limits(table, 3)
    assert enters(only_in_all, OTHER) is not None
    assert enters(limits(table, 1, most_of_client=2), OTHER) is not None


def test_both_limits(table: ConnectionTable) -> None:
    """Whoever its client's limit turns away leaves the pool's place, too."""
    both = limits(table, 1, most=3, most_of_client=1)
    assert enters(both) is not None
    for _ in range(5):
        assert enters(both) is None
    assert enters(both, OTHER) is not None
    assert enters(both, ("192.0.2.3", 1)) is not None
    assert enters(both, ("192.0.2.4", 1)) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True), ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True), ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True), ("::192.0.2.1", "192.0.2.1", False), ("0.0.0.1", "::", False),
    ],
)  # fmt: skip
def test_who_is_the_same_client(table: ConnectionTable, first: str, second: str, same: bool) -> None:
    """An IPv4 address in each of its forms; of IPv6 a network of 64 bits."""
    one = limits(table, 1, most_of_client=1)
    assert enters(one, (first, 1)) is not None
    assert (enters(one, (second, 2, 0, 0)) is None) == same


@pytest.mark.parametrize("address", ["", "/run/client", None, ("no address", 1), (7, 1)])
def test_who_has_no_address_is_no_client(table: ConnectionTable, address: Any) -> None:
    one = limits(table, 1, most_of_client=1)
    for _ in range(3):
        assert enters(one, address) is not None


def test_lanes_beyond_the_first_block(table: ConnectionTable) -> None:
    """Each of hundreds in a worker counts, and all are free again when it is reaped."""
    first, second = (limits(table, number, most=100, most_of_client=100) for number in (3, 4))
    for _ in range(50):
        assert enters(first) is not None
        assert enters(second) is not None
    assert enters(first) is None
    table.clear(3)
    for _ in range(50):
        assert enters(second) is not None
    assert enters(second) is None
    assert table.words[BLOCKS_OPENED + 3] == 0
    assert table.words[BLOCKS_OPENED + 4] == -(-101 // BLOCK)


def test_next_image_sees_the_connections_of_the_old(table: ConnectionTable) -> None:
    assert enters(limits(table, 1, most_of_client=1)) is not None
    values, fds = pack_connections(table)
    assert values == {"fd": fds[0]}
    after = table_of_connections(False, {"fd": os.dup(fds[0])})
    assert after is not None
    after.expect({1})
    assert enters(limits(after, 2, most_of_client=1)) is None
    after.clear(1)
    assert enters(limits(after, 2, most_of_client=1)) is not None
    after.close()


def test_table_of_another_version_is_not_gone_on_with(table: ConnectionTable) -> None:
    """Nor is there one that nobody wants."""
    assert table_of_connections(False, None) is None
    assert pack_connections(None) == (None, [])
    table.words[0] += 1
    again = os.dup(table.fd)
    assert table_of_connections(False, {"fd": again}) is None
    other = os.memfd_create("other")
    after = table_of_connections(True, {"fd": other})
    assert after is not None
    assert after.fd not in (again, other)
    after.close()
    os.close(again)
    os.close(other)


def cell(table: ConnectionTable, row: int, state: int, address: Any = ONE) -> int:
    """What another worker has written into its first cell."""
    client = limits(table, row, most=1)._client(address)
    assert client is not None
    table.words[BLOCKS_OPENED + row] = 1
    table.words[row * BLOCK] = module._word(state, client)
    return row * BLOCK


@pytest.mark.parametrize("state", [ASKS, ASKS_FOR_CLIENT])
def test_one_that_asks_first_is_given_way(
    table: ConnectionTable, state: int, sleeps: list[Callable[[], object]]
) -> None:
    """Where one place is left, whose cell is first gets it; what asks behind it lets it go before, and asks again."""
    most = {"most": 1} if state == ASKS else {"most_of_client": 1}
    first, ours, seen = cell(table, 4, state), 5 * BLOCK, []

    def goes() -> None:
        seen.append(table.words[ours] in (0, module._word(module.HELD, bytes(7))))
        table.words[first] = 0

    sleeps += [goes]
    assert enters(limits(table, 5, **most)) is not None
    assert seen == [True]
    table.words[ours] = 0
    cell(table, 4, state)
    sleeps += [lambda: cell(table, 4, COUNTED)]
    assert enters(limits(table, 5, **most)) is None


@pytest.mark.parametrize("state", [ASKS, ASKS_FOR_CLIENT])
def test_one_that_asks_later_is_waited_for(
    table: ConnectionTable, state: int, sleeps: list[Callable[[], object]]
) -> None:
    """Never are both let in: the first stays, and looks until the other has made up its mind."""
    most = {"most": 1} if state == ASKS else {"most_of_client": 1}
    later, ours = cell(table, 6, state), 5 * BLOCK
    seen: list[bool] = []

    def looks() -> None:
        seen.append(table.words[ours] not in (0, module._word(module.HELD, bytes(7))))

    sleeps += [looks, looks, lambda: table.words.__setitem__(later, 0)]
    assert enters(limits(table, 5, **most)) is not None
    assert seen == [True, True]


@pytest.mark.parametrize("row", [4, 6])
def test_one_that_asks_for_ever_costs_a_moment(table: ConnectionTable, row: int) -> None:
    """A worker was stopped while it asked: another client is not held up, its own is turned away."""
    waits: list[float] = []
    cell(table, row, ASKS_FOR_CLIENT)
    one = limits(table, 5, most_of_client=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sleep", waits.append)
        patch.setattr(module, "monotonic", lambda: 7.0 + sum(waits))
        assert enters(one, OTHER) is not None
        assert waits == []
        assert enters(one) is None
    assert set(waits) == {TIE_S}
    assert abs(sum(waits) - PATIENCE_S) < 2 * TIE_S
    table.clear(row)
    assert enters(one) is not None


def test_fork_of_user_code_frees_nothing(table: ConnectionTable) -> None:
    one = limits(table, 1, most_of_client=1)
    taken = enters(one)
    assert taken is not None
    one.forget()
    one.leave(taken)
    assert enters(limits(table, 2, most_of_client=1)) is None


def test_scribbled_words_fail_nobody(table: ConnectionTable) -> None:
    """Whatever a worker has written anywhere: each is admitted or turned away, and the master can clear every row."""
    rng = random.Random(17)
    for word in (
        1,
        *range(BLOCKS_OPENED, BLOCKS_OPENED + WORKER_ROWS),
        *(rng.randrange(16, BLOCKS * WORKER_ROWS * BLOCK) for _ in range(999)),
    ):
        table.words[word] = rng.getrandbits(64)
    for number in (1, 20, WORKER_ROWS - 1):
        enters(limits(table, number, most=5, most_of_client=5))
        table.clear(number)


def test_scribbled_table_is_right_again_when_all_are_replaced(table: ConnectionTable) -> None:
    """A worker starts with a row that is free, and no other is read than those of workers that live."""
    rng = random.Random(18)
    for word in (1, *range(16, WORKER_ROWS * BLOCK), *range(BLOCKS_OPENED, BLOCKS_OPENED + WORKER_ROWS)):
        table.words[word] = rng.getrandbits(64) >> 56 | 4
    assert enters(limits(table, 1, most=1)) is None
    table.expect({1})  # the second is started, the first reaped, and another first started
    table.clear(1)
    table.expect({2})
    one = limits(table, 1, most=2, most_of_client=1)
    assert enters(one) is not None
    assert enters(one) is None
    assert enters(one, OTHER) is not None


def test_clients_remembered_are_a_bounded_number(table: ConnectionTable) -> None:
    one = limits(table, 1, most_of_client=1)
    at = lane()
    for number in range(5000):
        assert enters(one, (f"10.0.{number // 250}.{number % 250}", 1), at) is not None
        one.leave(at)
    assert len(one._known) <= 1024


def test_hashes_are_of_this_table_alone() -> None:
    """Nobody outside can look for an address that is taken for somebody else's."""
    tables = [ConnectionTable() for _ in range(3)]
    hashes = {limits(each, 1, most=1)._client(ONE) for each in tables}
    assert len(hashes) == 3
    assert all(found is not None and len(found) == 7 for found in hashes)
    for each in tables:
        each.close()


def test_a_kept_connection(table: ConnectionTable) -> None:
    """It is counted from its lane's accept on, wherever it is, by every worker; the lane is free for another one."""
    at, others = lane(), ConnectionLimits(table, 2, client_of, most_of_client=1)
    limits = ConnectionLimits(table, 1, client_of, most_of_client=1)
    assert limits.admits(at)
    assert limits.admits_client(at, ONE)
    number = limits.keep(at)
    assert number > 0
    limits.leave(at)
    assert limits.keep(at) == 0
    for who in (limits, others):
        assert who.admits(at)
        assert not who.admits_client(at, ONE)
        assert who.admits_client(at, OTHER)
        who.leave(at)
        limits.kept.park(number)
    others.kept.drop(number)
    assert limits.admits(at)
    assert limits.admits_client(at, ONE)


def test_kept_connections_of_the_pool(table: ConnectionTable) -> None:
    """They count for the limit of all; a worker that dies frees those that it had, and not those that it has sent."""
    dies, lives = (ConnectionLimits(table, number, client_of, most=2) for number in (1, 2))
    first, at = lane(), lane()
    numbers = []
    for _ in range(2):
        assert dies.admits(first)
        numbers.append(dies.keep(first))
    assert not lives.admits(at)
    dies.kept.park(numbers[0])
    table.clear(1)
    assert not lives.admits(at)
    table.clear_process(os.getpid())
    assert lives.admits(at)
    lives.keep(at)
    assert not lives.admits(at)
