"""An exporter of OpenTelemetry that tells what it was given to send: `begin()` makes it, `record()` has it send."""

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tests.support.programs.served import tell


class Exporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        tell("exported", names=[span.name for span in spans])
        return SpanExportResult.SUCCESS


def begin() -> None:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=60_000))
    trace.set_tracer_provider(provider)


def record(name: str) -> None:
    with trace.get_tracer("test").start_as_current_span(name):
        pass
