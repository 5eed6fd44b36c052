"""The table of workers in the width of a terminal: which columns stay, and what becomes of a peer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.top.rows import fitted, shortened

IPV4 = "203.0.113.250:65535"
IPV6 = "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:65535"


def worker(**differences: Any) -> dict[str, Any]:
    """As wide as they get in practice."""
    return {
        "slot": 12, "pid": 4194303, "generation": 12, "state": "draining", "age_s": 3599.0, "requests": 12345678,
        "lanes": 1, "lanes_busy": 1, "request_age_s": 59.94, "peers": [IPV4], "cpu_s": 1234.5, "rss_bytes": 1 << 30,
        "private_memory_bytes": None, **differences,
    }  # fmt: skip


def row(width: int, **differences: Any) -> str:
    return fitted([worker(**differences)], {}, width)[1]


@pytest.mark.parametrize("lanes", [1, 16])
def test_an_ipv4_peer_is_whole_in_80_columns(lanes: int) -> None:
    """Whatever the other columns hold; state, age, requests, request, CPU and memory stand there too."""
    for found in (row(80, lanes=lanes), row(80, lanes=lanes, peers=[IPV4, IPV4])):
        assert len(found) <= 80
        assert IPV4 in found
        assert found.split()[-8 if "+1" in found else -7 :][:6] == (
            ["draining", "59m59s", "12345678", "59.9s", "1234.5s", "1.0G"]
        )


def test_an_ipv6_peer_keeps_its_port() -> None:
    """An IPv6 peer is shortened in the middle, to the room there is."""
    found = row(80, peers=[IPV6])
    assert len(found) <= 80
    assert found.split()[-1].startswith("[2001:")
    assert found.endswith("]:65535")
    assert ".." in found
    assert IPV6 in row(130, peers=[IPV6])


def test_a_mapped_ipv4_peer_is_shown_as_ipv4() -> None:
    """The IPv4 client of a dual-stack listener is shown as IPv4, and so whole in 80 columns."""
    assert row(80, peers=[f"[::ffff:{IPV4[:-6]}]{IPV4[-6:]}"]).endswith(f" {IPV4}")


def test_columns_are_given_up_only_where_there_is_no_room() -> None:
    """A wide terminal has all columns; a narrow one first gives up those that say the same of all."""
    assert fitted([worker()], {}, 200)[0].split()[2] == "gen"
    small = {"pid": 1, "requests": 1, "cpu_s": 1.0, "age_s": 1.0}
    heading = fitted([worker(generation=1, **small), worker(**small)], {}, 80)[0].split()
    assert "gen" in heading
    assert "busy" not in heading


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"])), st.integers(21, 60))
def test_shortened(peer: str, width: int) -> None:
    """Nothing is longer than its room, and what has room is whole."""
    found = shortened(peer, width)
    assert found == peer if len(peer) <= width else len(found) == width


@given(st.integers(60, 200), st.integers(1, 16), st.sampled_from([IPV4, IPV6, "pid=4711 uid=0"]), st.integers(0, 16))
def test_no_row_is_wider_than_80_columns_or_more(width: int, lanes: int, peer: str, peers: int) -> None:
    """From 80 columns on every row fits whole."""
    found = fitted([worker(lanes=lanes, peers=[peer] * peers), worker(peers=[])], {}, max(80, width))
    assert max(map(len, found)) <= max(80, width)
