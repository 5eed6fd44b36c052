"""Datagrams that were cut: counted on the lane that receives, told once in ten seconds."""

import logging

import pytest

from prefork.metrics.scoreboard import LANE_WORDS, TRUNCATED
from prefork.sockets.addresses import address_text
from prefork.workers import cut_datagrams as module
from prefork.workers.cut_datagrams import CutDatagrams


def test_each_is_counted_and_some_are_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now, lane = [0.0], memoryview(bytearray(8 * LANE_WORDS)).cast("Q")
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    cut = CutDatagrams(lambda: lane, address_text)
    with caplog.at_level(logging.WARNING, "prefork.server"):
        for now[0] in (0.0, 9.9, 10.0, 10.1):
            cut.note(512, ("::1", 9, 0, 0) if now[0] else None)
    assert lane[TRUNCATED] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "a datagram from an unnamed client is longer than max_packet_size, and cut to its first 512 bytes",
        "a datagram from [::1]:9 is longer than max_packet_size, and cut to its first 512 bytes",
    ]


def test_outside_a_request_it_is_told_only(caplog: pytest.LogCaptureFixture) -> None:
    CutDatagrams(lambda: None, address_text).note(1, "path")
    assert "from path" in caplog.text
