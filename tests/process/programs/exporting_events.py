"""An exporter of Sentry that tells what it was given to send: `begin()` makes it, `record()` has it send."""

from typing import Any

import sentry_sdk
from sentry_sdk.transport import HttpTransport

from tests.support.programs.served import tell


class Transport(HttpTransport):
    def _send_request(self, body: Any, headers: Any, endpoint_type: Any = None, envelope: Any = None) -> None:
        tell("exported", names=[envelope.get_event()["message"]])


def begin() -> None:
    sentry_sdk.init("http://key@127.0.0.1:9/1", transport=Transport, auto_session_tracking=False)


def record(name: str) -> None:
    sentry_sdk.capture_message(name)
