"""GET from a metrics address over TCP, TLS or a Unix socket, completed within one deadline.

Runs in `prefork top --url`. Must not use proxies of the environment or follow redirects: it asks only the address that
was given.
"""

import email.utils
import http.client
import socket
import ssl
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, PreforkError, reason_of
from ..sockets.addresses import parse_address

__all__ = ["Endpoint", "Response", "get", "parse_url"]

FORMS = "http://HOST:PORT, HOST:PORT or unix:/PATH, as the service has --metrics"
PATH = "/metrics"
LONGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and the path to get. `text` is the original text; `unix` is the path of a Unix socket."""

    text: str
    host: str
    port: int
    path: str = PATH
    unix: str | None = None
    tls: bool = False

    def beside(self, path: str) -> "Endpoint | None":
        """Return the endpoint of another path of the same exporter; None if it cannot be derived."""
        prefix = self.path.removesuffix(PATH)
        return None if prefix == self.path else replace(self, path=prefix + path)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    text: str
    date: float  # by the exporter's wall clock


def parse_url(text: str) -> Endpoint:
    """Parse the address of metrics. Raises ConfigError."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return _address(text)
    if scheme.lower() not in ("http", "https"):
        raise _refused(text, f"it must be {FORMS}")
    try:
        found = urlsplit(text)
        host, port = found.hostname, found.port
    except ValueError as exc:
        raise _refused(text, str(exc)[:1].lower() + str(exc)[1:]) from None
    if not host or found.username is not None:
        raise _refused(text, "it has no host" if not host else "a user's name is not sent")
    tls = scheme.lower() == "https"
    path = (found.path if found.path != "/" else "") or PATH
    return Endpoint(text, host, port or (443 if tls else 80), f"{path}?{found.query}" if found.query else path, tls=tls)


def _address(text: str) -> Endpoint:
    if text.startswith("/"):
        text = f"unix:{text}"
    elif ":" not in text:
        raise _refused(text, f"it must be {FORMS}")
    elif "/" in text and not text.startswith("unix"):
        return replace(parse_url(f"http://{text}"), text=text)
    found = parse_address(text)
    if found.kind == "unix":
        return Endpoint(text, "localhost", 0, unix=str(found.address))
    if found.kind != "tcp" or isinstance(found.address, str):
        raise _refused(text, f"it must be {FORMS}")
    host, port = found.address
    return Endpoint(text, host or "127.0.0.1", port)


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(f"could not read the URL {text!r}: {reason}")


def get(place: Endpoint, until: float) -> Response:
    """Get the endpoint by `until` (monotonic). Raises PreforkError."""
    seconds = max(0.001, until - time.monotonic())
    try:
        with _dialled(place, until) as sock:
            return _asked(place, sock)
    except TimeoutError:
        raise PreforkError(f"could not hear from {place.text}: no answer within {seconds:.2g} s") from None
    except http.client.HTTPException:
        raise PreforkError(
            f"could not read {place.text}: what answers there does not speak HTTP; is it the address of --metrics?"
        ) from None
    except OSError as exc:
        raise PreforkError(f"could not reach {place.text}: {_reason(exc)}") from None


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc}".lower().replace("tls", "TLS").replace("_", " ")
    return reason_of(exc)


def _asked(place: Endpoint, sock: socket.socket) -> Response:
    connection = http.client.HTTPConnection(place.host, place.port)
    connection.sock = sock
    connection.request("GET", place.path, headers={"Accept": "text/plain", "Connection": "close"})
    with connection.getresponse() as response:
        body = response.read(LONGEST + 1)
        if len(body) > LONGEST:
            raise PreforkError(f"could not read {place.text}: its answer is longer than {LONGEST >> 20} MiB")
        text = body.decode(errors="replace")
        return Response(response.status, response.reason, text, _date(response.getheader("Date")))


def _date(text: str | None) -> float:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp()
    except ValueError:
        return time.time()


def _left(until: float) -> float:
    """Return the seconds left. Raises TimeoutError if there are none: a steady stream never times out by itself."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Hurried(socket.socket):
    """A socket whose reads have the deadline `until`, however slowly the bytes arrive."""

    until = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left(self.until))
        return super().recv_into(*args, **kwargs)


class _HurriedTLS(ssl.SSLSocket):
    until = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left(self.until))
        return super().recv_into(*args, **kwargs)


def _dialled(place: Endpoint, until: float) -> _Hurried | _HurriedTLS:
    seconds = _left(until)
    if place.unix is not None:
        sock = _Hurried(socket.AF_UNIX)
        try:
            sock.settimeout(seconds)
            sock.connect(place.unix)
        except BaseException:
            sock.close()
            raise
    else:
        found = socket.create_connection((place.host, place.port), seconds)
        sock = _Hurried(fileno=found.detach())
        sock.settimeout(seconds)
    sock.until = until
    return _secured(place, sock, until) if place.tls else sock


def _secured(place: Endpoint, sock: socket.socket, until: float) -> _HurriedTLS:
    context = ssl.create_default_context()
    context.sslsocket_class = _HurriedTLS
    with sock:  # wrapping moves its descriptor to the new socket
        secured = context.wrap_socket(sock, server_hostname=place.host)
    assert isinstance(secured, _HurriedTLS)
    secured.until = until
    return secured
