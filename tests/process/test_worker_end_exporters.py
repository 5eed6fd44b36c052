"""What exporters of others have still to send when a worker ends arrives, with opentelemetry-sdk and sentry-sdk."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.service import Service, script

REQUESTS, EACH = 100, 10
EXPORTERS = {
    "opentelemetry": "tests.process.programs.exporting_spans", "sentry": "tests.process.programs.exporting_events",
}  # fmt: skip
PROGRAM = "from tests.process.programs.exporting import Handler, Hooks"


@pytest.mark.once
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("in_master", [True, False], ids=["master", "worker"])
def test_everything_arrives(exporter: str, in_master: bool, tmp_path: Path) -> None:
    """Every span, every event of a hundred requests arrives, once, though each worker is replaced after ten requests,
    and all of them by USR2 and by the drain at the end; whether the exporter was made in the worker or before it."""
    settings: dict[str, Any] = {"exporter": EXPORTERS[exporter], "in_master": in_master}
    with Service(tmp_path, script(PROGRAM, max_children=2, max_requests=EACH, **settings)) as service:
        service.wait_ready(2)
        for number in range(REQUESTS):
            if number == REQUESTS // 2:
                service.signal(signal.SIGUSR2)
            with service.connect() as client:
                client.ask(b"record n%d" % number)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
        arrived = Counter(name for fact in service.facts if fact["event"] == "exported" for name in fact["names"])
    assert arrived == Counter(f"n{number}" for number in range(REQUESTS))
    assert set(ended["exits"]) <= {"max_requests", "replaced", "drained"}
