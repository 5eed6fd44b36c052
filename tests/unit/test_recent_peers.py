"""The clients from which datagrams came last, and how many are remembered."""

from prefork.workers.recent_peers import REMEMBERED_AT_LEAST, RecentPeers


def test_as_the_program_may_write_it() -> None:
    """An IPv6 address with and without what follows its port; not of another descriptor."""
    recent = RecentPeers()
    recent.note(3, ("::1", 9, 0, 0), "peer")
    assert [recent.find(3, address) for address in (("::1", 9, 0, 0), ("::1", 9))] == ["peer"] * 2
    nobody = (("::1", 8), ("::2", 9), (), ("::1",), "path", b"\0name", None)
    assert [recent.find(3, address) for address in nobody] == [None] * len(nobody)
    assert recent.find(4, ("::1", 9)) is None


def test_so_many_are_remembered_and_not_many_more() -> None:
    recent = RecentPeers()
    for port in range(10 * REMEMBERED_AT_LEAST):
        recent.note(3, ("127.0.0.1", port), port)
        known = [recent.find(3, ("127.0.0.1", each)) for each in range(port + 1)][-REMEMBERED_AT_LEAST:]
        assert known == list(range(port + 1))[-REMEMBERED_AT_LEAST:]
    assert (
        sum(recent.find(3, ("127.0.0.1", each)) is not None for each in range(10 * REMEMBERED_AT_LEAST))
        <= 2 * REMEMBERED_AT_LEAST
    )
