"""What exporters of others have still to send when a worker ends arrives, with opentelemetry-sdk and sentry-sdk."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.support.programs.service import Service, script

REQUESTS, EACH = 100, 10
SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

class Exporter(SpanExporter):
    def export(self, spans):
        tell("exported", names=[span.name for span in spans])
        return SpanExportResult.SUCCESS

def begin():
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=60_000))
    trace.set_tracer_provider(provider)

def record(name):
    with trace.get_tracer("test").start_as_current_span(name):
        pass
"""
EVENTS = """
import sentry_sdk

class Transport(sentry_sdk.transport.HttpTransport):
    def _send_request(self, body, headers, endpoint_type=None, envelope=None):
        tell("exported", names=[envelope.get_event()["message"]])

def begin():
    sentry_sdk.init("http://key@127.0.0.1:9/1", transport=Transport, auto_session_tracking=False)

record = sentry_sdk.capture_message
"""
PROGRAM = """
class Handler(Who):
    def do_record(self, name):
        record(name)
class Hooks:
    def __init__(self, *args):
        super().__init__(*args)
        if IN_MASTER:
            begin()
    def worker_started(self):
        super().worker_started()
        if not IN_MASTER:
            begin()
"""


@pytest.mark.once
@pytest.mark.parametrize("exporter", [SPANS, EVENTS], ids=["opentelemetry", "sentry"])
@pytest.mark.parametrize("in_master", [True, False], ids=["master", "worker"])
def test_everything_arrives(exporter: str, in_master: bool, tmp_path: Path) -> None:
    """Every span, every event of a hundred requests arrives, once, though each worker is replaced after ten requests,
    and all of them by USR2 and by the drain at the end; whether the exporter was made in the worker or before it."""
    program = f"{exporter}\nIN_MASTER = {in_master}\n{PROGRAM}"
    with Service(tmp_path, script(program, max_children=2, max_requests=EACH)) as service:
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
