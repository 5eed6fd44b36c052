"""A handler with more series of the program's own than there is room for."""

import prometheus_client

from tests.support.programs import scribbling

SEEN = prometheus_client.Counter("seen", "Label sets.", ["what"])


class Handler(scribbling.Handler):
    def do_series(self) -> None:
        for number in range(4000):
            SEEN.labels(str(number) + "x" * 500).inc()
