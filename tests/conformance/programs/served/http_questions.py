"""A question of HTTP, for the clients of the programs that speak it."""

import http.client

HUNG = 30.0  # seconds; never reached unless something hangs


def request(
    host: str, port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """The status and the body that answer, over a connection of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=HUNG)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
