"""A worker that writes at random over its slot can spoil its own numbers, and nothing else."""

import signal
from pathlib import Path

import pytest

from tests.support.clients.connections import Load
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure

SECONDS = 5.0

# The slot is found as broken code would hit it: by its mapping in this process.
SCRIBBLING = "from tests.support.programs.scribbling import Handler"


@pytest.mark.quick_faults
@pytest.mark.parametrize(("bases", "kind", "seconds"), [
    ("PreForkingTCPServer", "bytes", SECONDS),
    ("PreForkingTCPServer", "numbers", 1.0),
    ("PreForkingMixIn, ThreadingTCPServer", "bytes", 1.0),
])  # fmt: skip
def test_scribbling(bases: str, kind: str, seconds: float, tmp_path: Path) -> None:
    """Master, other pids and what the others count stay as they are while a worker scribbles over its slot."""
    # One that writes that it leaves by itself is believed for that long, and has no other end.
    more = {"request_timeout": 60, "graceful_timeout": 5, "metrics_address": "m"}
    with Service(tmp_path, script(SCRIBBLING, bases=bases, max_children=3, **more), accounts=False) as service:
        service.allow("could not finish the request .*ValueError", "a request has run for longer than request_timeout")
        service.allow(r"exited \(killed by SIGKILL\)")
        service.wait_ready(3)
        before = set(service.workers())
        with service.hold() as held:
            assert held.ask(b"mappings") == b"1", "a worker has more than its own slot mapped"
            with Load(service.address, 2) as load:
                held.send(b"scribble %.1f %s 20261121" % (seconds, kind.encode()))
                rounds = (held.answer_or_end() or b"").decode()
                load.wait_answered(1)
            others = before - {held.pid}
            assert others <= set(service.workers()), "another worker was felled"
            statistics = service.statistics()
    assert rounds or kind == "numbers"  # one that claims a request of 60 s is cut for it
    figure(f"{bases}, {rounds or '?'} slots of random {kind}: other pids that changed", 0, 0)
    figure(f"{bases}, random {kind}: requests failed", f"{load.tally.failures} of {load.tally.opened}", 0)
    assert load.tally.failures == 0
    if kind == "bytes":
        served_by_the_scribbler = 1 if "Threading" not in bases else load.tally.answered + 1
        spoilt = abs(statistics["accepted"] - load.tally.answered - 1)
        figure(f"{bases}, random {kind}: difference in accepted", spoilt, served_by_the_scribbler)
        assert spoilt <= served_by_the_scribbler
        assert service.wait("ended")["words_rejected"] > 0


def test_scribbling_over_the_table_of_connections(tmp_path: Path) -> None:
    """It spoils who is admitted, and nothing else: whoever is has an answer; when all are replaced the limit is right
    again."""
    source = script(SCRIBBLING, max_children=4, max_connections_per_client=2, max_connections=3)
    with Service(tmp_path, source) as service:
        service.wait_ready(4)
        before = set(service.workers())
        with service.hold() as held, Load(service.address, 2) as load:
            held.send(b"scribble_connections 2 20261129")
            assert int(held.answer()) > 10
            load.stop()
        assert before == set(service.workers())
        turned_away = load.tally.failures
        figure("scribbled table: answered, turned away", f"{load.tally.answered}, {turned_away}")
        assert service.settled()["rejected"] == turned_away
        service.signal(signal.SIGUSR2)
        service.wait_ready(4, replaced=4)
        with service.hold(), service.hold(), service.connect() as third:
            third.send(b"pid")
            assert third.answer_or_end() is None


def test_word_to_drain_is_written_over(tmp_path: Path) -> None:
    """A worker that has written over the word by which it was told to drain, before it has heard of it, is told again,
    and leaves long before it would be killed."""
    source = script(SCRIBBLING, max_children=1, graceful_timeout=2 * HUNG)
    with Service(tmp_path, source, accounts=False) as service, service.hold() as held:
        held.send(b"clear_when_told")
        service.wait("deaf")
        service.signal(signal.SIGTERM)
        held.answer()
        held.close()
        assert service.wait_exit() == 0
