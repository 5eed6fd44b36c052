"""Over HTTP, a connection goes on only where the client knows the end of its answer, and we the end of its request."""

import functools
import io
import os
import socket
import threading
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork import KeepAliveMixIn
from prefork.workers.http_exchange import HEAD_MAX, AnswerFile
from prefork.workers.kept import Kept
from prefork.workers.stay import KeptSocket, Stay, peek
from tests.support.programs.serving import HUNG

OK = b"HTTP/1.1 200 OK\r\n"


class Quiet(KeepAliveMixIn):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Answers(Quiet, BaseHTTPRequestHandler):
    """Answers as the test says, by the path."""

    ways: dict[str, Callable[["Answers"], object]]

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))  # type: ignore[attr-defined]
        self.ways[self.path](self)

    do_HEAD = do_POST = do_GET  # noqa: N815


def answers(**ways: Callable[[Any], object]) -> type:
    ways["next"] = lambda handler: handler.wfile.write(OK + b"Content-Length: 4\r\n\r\nnext")
    return type("Answering", (Answers,), {"ways": {f"/{name}": way for name, way in ways.items()}})


def serve(handler: Any, request: socket.socket, server: Any, *, kept: bool) -> None:
    """Serve a connection to its end; `kept`: stay by stay, for as long as there are bytes at hand."""
    with request:
        if not kept:
            handler(request, ("client", 1), server)
            return
        left = Kept()
        while left.unread or peek(request):
            with KeptSocket(request.family, request.type, request.proto, socket.dup(request.fileno())) as sock:
                sock.stay = stay = Stay(left, lambda stay: None)
                handler(sock, ("client", 1), server)
            if not stay.goes_on:
                server.closed.append(left.requests + stay.begun)
                return
            left = stay.left()


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), HUNG)
        return listener.accept()[0], client


def talk(handler: Any, sent: bytes, *, kept: bool, more: Any = None) -> tuple[bytes, Any]:
    """What the client of a connection gets that has sent this and nothing after it; and the server."""
    server = SimpleNamespace(asked=[], closed=[], keepalive_timeout=0.05, **(more or {}))
    request, client = pair()
    with client:
        client.sendall(sent)
        serving = threading.Thread(target=serve, args=(handler, request, server), kwargs={"kept": kept})
        serving.start()
        with client.makefile("rb") as file:
            got = file.read()
        serving.join(HUNG)
    return got, server


def get(path: str, *lines: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{method} {path} HTTP/{version}", "Host: here", *lines])
    return head.encode() + b"\r\n\r\n" + body


def writes(*parts: Any) -> Callable[[Any], object]:
    return lambda handler: [handler.wfile.write(part) for part in parts]


LEADS_ON = {
    "length": writes(OK + b"Content-Length: 2\r\n\r\nab"),
    "in parts": writes(OK, b"Content-Le", b"ngth: 2\r\n\r", b"\na", b"b"),
    "any case": writes(OK + b"CONTENT-LENGTH:2\r\n\r\n", memoryview(b"ab")),
    "empty": writes(OK + b"Content-Length: 0\r\n\r\n"),
    "no content": writes(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": writes(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
    "chunks": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
    "chunks in parts": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n", b"0\r", b"\n", b"\r\n"),
    "chunk that looks like the last": writes(
        OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n", b"5;x=y\r\n0\r\n\r\n\r\n00000\r\n\r\n"
    ),
    "trailer": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nSum: 1\r\n\r\n"),
    "interim": writes(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nab"),
    "says keep-alive": writes(OK + b"Connection: Keep-Alive\r\nContent-Length: 2\r\n\r\nab"),
}
ENDS = {
    "no length": writes(OK + b"\r\nab"),
    "less": writes(OK + b"Content-Length: 3\r\n\r\nab"),
    "more": writes(OK + b"Content-Length: 1\r\n\r\nab"),
    "two lengths": writes(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nab"),
    "no number": writes(OK + b"Content-Length: two\r\n\r\nab"),
    "no last chunk": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
    "no last chunk after an empty line": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nab\r\n\r\n"),
    "more than the last chunk": writes(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n0\r\n\r\n"),
    "no chunks": writes(OK + b"Transfer-Encoding: chunked\r\n\r\nab\r\n0\r\n\r\n"),
    "another coding": writes(OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "says close": writes(OK + b"Connection: x, close\r\nContent-Length: 2\r\n\r\nab"),
    "nothing": writes(),
    "interim only": writes(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "half a head": writes(OK + b"Content-Length: 0\r\n"),
    "no head": writes(b"ab"),
    "body of a 204": writes(b"HTTP/1.1 204 No Content\r\n\r\nab"),
    "endless head": writes(OK + b"X: y\r\n" * (HEAD_MAX // 6) + b"\r\n"),
    "old": writes(b"HTTP/1.0 200 OK\r\nConnection: te\r\nContent-Length: 2\r\n\r\nab"),
    "old without length": writes(b"HTTP/1.0 200 OK\r\n\r\nab"),
}
KEPT = pytest.mark.parametrize("kept", [False, True], ids=["loop", "stays"])


@KEPT
@pytest.mark.parametrize("rbufsize", [-1, 0])
@pytest.mark.parametrize("way", LEADS_ON.values(), ids=LEADS_ON)
def test_an_answer_that_leads_on(way: Callable[[Any], object], rbufsize: int, kept: bool) -> None:
    """The connection goes on after it, and not a byte of it is changed."""
    handler = answers(first=way)
    handler.rbufsize = rbufsize  # type: ignore[attr-defined]
    got, server = talk(handler, get("/first") + get("/next"), kept=kept)
    assert server.asked == [("GET", "/first"), ("GET", "/next")]
    plain = io.BytesIO()
    way(SimpleNamespace(wfile=plain))
    assert got == plain.getvalue() + OK + b"Content-Length: 4\r\n\r\nnext"


@KEPT
@pytest.mark.parametrize("way", ENDS.values(), ids=ENDS)
def test_an_answer_that_leaves_the_client_waiting(way: Callable[[Any], object], kept: bool) -> None:
    """The connection is closed after it, and not a byte of it is changed."""
    got, server = talk(answers(first=way), get("/first") + get("/next"), kept=kept)
    assert server.asked == [("GET", "/first")]
    plain = io.BytesIO()
    way(SimpleNamespace(wfile=plain))
    assert got == plain.getvalue()


@KEPT
def test_the_answer_to_head(kept: bool) -> None:
    """Has no body, whatever its length says."""
    way = writes(OK + b"Content-Length: 77\r\n\r\n")
    _, server = talk(answers(first=way), get("/first", method="HEAD") + get("/next"), kept=kept)
    assert len(server.asked) == 2


@KEPT
@pytest.mark.parametrize(("version", "said"), [("1.0", "keep-alive"), ("1.1", "")])
@pytest.mark.parametrize("answer_version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("cut", [1, 16, 20, 36, 37, 38, 39, 41])
def test_http_1_0(version: str, said: str, answer_version: bytes, cut: int, kept: bool) -> None:
    """Where either side speaks it, the answer says that the connection is kept, or a client would wait for its end."""
    answer = b"HTTP/%b 200 OK\r\nContent-Length: 2\r\n\r\nab" % answer_version
    sent = b"".join(get(path, f"Connection: {said}", version=version) for path in ("/first", "/first", "/next"))
    got, server = talk(answers(first=writes(answer[:cut], answer[cut:])), sent, kept=kept)
    if (version, answer_version) == ("1.1", b"1.1"):
        assert len(server.asked) == 3
        assert got.startswith(answer * 2)
    elif cut == 37:  # in the midst of the empty line: too late to say it
        assert got == answer
    else:
        assert len(server.asked) == 3
        assert got.startswith(answer.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n") * 2)


@KEPT
def test_a_client_that_does_not_ask(kept: bool) -> None:
    """Of HTTP/1.0 is answered as ever, and the connection closed."""
    answer = OK + b"Content-Length: 2\r\n\r\nab"
    got, server = talk(answers(first=writes(answer)), get("/first", version="1.0") + get("/next"), kept=kept)
    assert (got, len(server.asked)) == (answer, 1)


def reads(size: int) -> Callable[[Any], object]:
    def way(handler: Any) -> None:
        handler.server.asked.append(handler.rfile.read(size))
        handler.wfile.write(OK + b"Content-Length: 2\r\n\r\nab")

    return way


@KEPT
@pytest.mark.parametrize("rbufsize", [-1, 0, 1, 16])
@pytest.mark.parametrize("size", range(6))
def test_a_body_that_is_not_read(size: int, rbufsize: int, kept: bool) -> None:
    """What is left of it is skipped, as it is there: it is no request."""
    handler = answers(first=reads(size))
    handler.rbufsize = rbufsize  # type: ignore[attr-defined]
    sent = get("/first", "Content-Length: 5", method="POST", body=b"GET /") + get("/next")
    _, server = talk(handler, sent, kept=kept)
    assert server.asked == [("POST", "/first"), b"GET /"[:size], ("GET", "/next")]


@KEPT
@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (["Content-Length: 500"], 0), (["Content-Length: 500"], 3), (["Content-Length: 5"], 6),
        (["Content-Length: five"], 5), (["Content-Length: -5"], 0), (["Content-Length: 5", "Content-Length: 6"], 5),
        (["Transfer-Encoding: chunked"], 0), ([], 5),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 5), (["Transfer-Encoding: x", "Content-Length: 5"], 5),
    ],
)  # fmt: skip
def test_a_body_whose_end_is_not_certain(lines: list[str], size: int, kept: bool) -> None:
    """Ends the connection after the answer: what follows may be no request."""
    sent = get("/first", *lines, method="POST", body=b"abcde") + get("/next")
    got, server = talk(answers(first=reads(size)), sent, kept=kept)
    assert len(server.asked) == 2
    assert got == OK + b"Content-Length: 2\r\n\r\nab"


CHUNKS = b"6\r\nGET / \r\n0\r\nSum: 1\r\n\r\n"


@KEPT
@pytest.mark.parametrize("rbufsize", [-1, 0, 1, 16])
@pytest.mark.parametrize("size", range(1, len(CHUNKS) + 1))
def test_chunks_are_the_programs_to_read(size: int, rbufsize: int, kept: bool) -> None:
    """If it has read some of them, what it has left is skipped, as it is there: it is no request."""
    handler = answers(first=reads(size))
    handler.rbufsize = rbufsize  # type: ignore[attr-defined]
    sent = get("/first", "Transfer-Encoding: chunked", method="POST", body=CHUNKS) + get("/next")
    _, server = talk(handler, sent, kept=kept)
    assert server.asked == [("POST", "/first"), CHUNKS[:size], ("GET", "/next")]


@KEPT
@pytest.mark.parametrize("body", [CHUNKS + b"?", CHUNKS[:-1], b"6\r\nabc", b"abc\r\n0\r\n\r\n"])
def test_chunks_whose_end_is_not_certain(body: bytes, kept: bool) -> None:
    """End the connection after the answer, where more was read than there are, or less is there."""
    sent = get("/first", "Transfer-Encoding: chunked", method="POST", body=body)
    _, server = talk(answers(first=reads(len(body))), sent, kept=kept)
    assert server.closed == ([1] if kept else [])
    assert server.asked == [("POST", "/first"), body]


@KEPT
def test_chunks_of_an_old_client(kept: bool) -> None:
    """HTTP/1.0 knows none: whoever has passed that on may have taken something else for the request's end."""
    lines = ("Transfer-Encoding: chunked", "Connection: keep-alive")
    sent = get("/first", *lines, method="POST", version="1.0", body=b"abcde") + get("/next")
    _, server = talk(answers(first=reads(5)), sent, kept=kept)
    assert len(server.asked) == 2


@KEPT
def test_expect(kept: bool) -> None:
    """A client that waits for 100 Continue is told so, sends its body, and goes on."""
    server = SimpleNamespace(asked=[], closed=[], keepalive_timeout=HUNG)
    request, client = pair()
    serving = threading.Thread(target=serve, args=(answers(first=reads(2)), request, server), kwargs={"kept": kept})
    with client:
        client.sendall(get("/first", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        serving.start()
        assert client.recv(999) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ab" + get("/next", "Connection: close"))
        with client.makefile("rb") as file:
            assert file.read().endswith(b"next")
    serving.join(HUNG)
    assert server.asked == [("POST", "/first"), b"ab", ("GET", "/next")]


@KEPT
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\r\n", b""), (b"NONSENSE\r\n\r\n", b"Error code: 400"), (b"GET / HTTP/7.1\r\n\r\n", b"Error code: 505"),
        (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", b"Error code: 414"), (get("/", method="BREW"), b" 501 "),
        (get("/", "x" * 70000), b" 431 "), (b"GET /first\r\n\r\n", b"ab"),
    ],
)  # fmt: skip
def test_errors_of_the_request(sent: bytes, said: bytes, kept: bool) -> None:
    """End the connection, also behind a good request: what follows one that is not understood is none."""
    handler = answers(first=writes(b"ab"))
    got, server = talk(handler, get("/next") + sent + get("/next"), kept=kept)
    assert server.asked.count(("GET", "/next")) == got.count(b"next") == 1
    assert said in got.split(b"next")[1]


class Sent:
    """What a client has received, for HTTPResponse."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self._file.close = lambda: None  # type: ignore[method-assign]

    def makefile(self, mode: str) -> Any:
        return self._file


def answered(got: bytes, *methods: str) -> list[tuple[HTTPResponse, bytes]]:
    """The answers in this, and their bodies; that is all of it."""
    sent = Sent(got)
    found = []
    for method in methods:
        response = HTTPResponse(sent, method=method)  # type: ignore[arg-type]
        response.begin()
        found.append((response, response.read()))
    assert sent.makefile("rb").read() == b""
    return found


class Site(Quiet, SimpleHTTPRequestHandler):
    """Files."""


@KEPT
def test_files(tmp_path: Path, kept: bool) -> None:
    """http.server's own handler: a file, a directory, one that is missing, one that has not changed."""
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "sub").mkdir()
    sent = get("/a") + get("/") + get("/a", method="HEAD") + get("/sub") + get("/a") + get("/none") + get("/a")
    handler = functools.partial(Site, directory=str(tmp_path))
    got, _ = talk(handler, sent, kept=kept)
    responses = answered(got, "GET", "GET", "HEAD", "GET", "GET", "GET")
    assert [response.status for response, _ in responses] == [200, 200, 200, 301, 200, 404]
    assert [len(body) for _, body in responses][::4] == [100_000, 100_000]


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    parts = [b"one ", b"two"] if path == "/parts" else [path.encode()]
    if path == "/read":
        parts = [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]
    start_response("204 None" if path == "/none" else "200 OK", [("Content-Type", "text/plain")])
    return [] if path == "/none" else parts


class Wsgi(Quiet, wsgiref.simple_server.WSGIRequestHandler):
    """wsgiref's."""


WSGI = {"get_app": lambda: application, "base_environ": {"SERVER_PORT": "1"}}


@KEPT
def test_wsgiref(kept: bool) -> None:
    """Answers that have a length keep the connection, whether the application reads its request or not."""
    post = functools.partial(get, method="POST", body=b"GET /")
    sent = get("/one") + post("/read", "Content-Length: 5") + post("/two", "Content-Length: 5") + get("/three")
    got, _ = talk(Wsgi, sent, kept=kept, more=WSGI)
    responses = answered(got, "GET", "POST", "POST", "GET")
    assert [body for _, body in responses] == [b"/one", b"GET /", b"/two", b"/three"]
    assert not any(response.will_close for response, _ in responses)


@KEPT
def test_wsgiref_without_length(kept: bool) -> None:
    """Its answers are of HTTP/1.0: without a length the client reads to the end of file, and that comes."""
    got, _ = talk(Wsgi, get("/none") + get("/parts") + get("/next"), kept=kept, more=WSGI)
    (none, _), (response, body) = answered(got, "GET", "GET")
    assert (none.will_close, response.will_close, body) == (False, True, b"one two")


class Rpc(Quiet, xmlrpc.server.SimpleXMLRPCRequestHandler):
    """xmlrpc.server's."""


class Dispatcher(xmlrpc.server.SimpleXMLRPCDispatcher, SimpleNamespace):
    logRequests = False  # noqa: N815
    keepalive_timeout = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[int] = []
        self.register_function(lambda base, exponent: base**exponent, "pow")


@KEPT
def test_xmlrpc(kept: bool) -> None:
    """Several calls, one that raises, and one of a path that is none, whose body nobody reads."""
    call = xmlrpc.client.dumps((2, 5), "pow").encode()
    wrong = xmlrpc.client.dumps((), "none").encode()
    sent = b"".join(
        get(path, f"Content-Length: {len(body)}", "Content-Type: text/xml", method="POST", body=body)
        for path, body in [("/RPC2", call), ("/RPC2", wrong), ("/elsewhere", call), ("/RPC2", call)]
    )
    server = Dispatcher()
    request, client = pair()
    serving = threading.Thread(target=serve, args=(Rpc, request, server), kwargs={"kept": kept})
    with client:
        client.sendall(sent)
        serving.start()
        with client.makefile("rb") as file:
            got = file.read()
    serving.join(HUNG)
    responses = answered(got, *["POST"] * 4)
    assert [response.status for response, _ in responses] == [200, 200, 404, 200]
    assert responses[0][1] == responses[3][1] == xmlrpc.client.dumps((32,), methodresponse=True).encode()


class Echo(Quiet, BaseHTTPRequestHandler):
    """Answers with the body that was sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=20), st.integers(0, 2000),
    st.sampled_from([1, 7, 64, 8192]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_pipeline_cut_anywhere(bodies: list[bytes], cut: int, rbufsize: int) -> None:
    """Is answered in its order, each request once, wherever a stay ends."""
    handler = type("Small", (Echo,), {"rbufsize": rbufsize})
    sent = b"".join(get("/", f"Content-Length: {len(body)}", method="POST", body=body) for body in bodies)
    server = SimpleNamespace(closed=[])
    request, client = pair()
    request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    with client:
        client.sendall(sent[:cut])
        serving = threading.Thread(target=serve_all, args=(handler, request, server))
        serving.start()
        client.sendall(sent[cut:])
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            got = file.read()
    serving.join(HUNG)
    assert [body for _, body in answered(got, *["POST"] * len(bodies))] == bodies


def serve_all(handler: Any, request: socket.socket, server: Any) -> None:
    """Serve a connection stay by stay, to its client's end."""
    left = Kept()
    with request:
        while True:
            with KeptSocket(request.family, request.type, request.proto, socket.dup(request.fileno())) as sock:
                if not left.unread and not sock.recv(1, socket.MSG_PEEK):
                    return
                sock.stay = stay = Stay(left, lambda stay: None)
                handler(sock, ("client", 1), server)
            if not stay.goes_on:
                return
            left = stay.left()


def test_the_file_of_an_answer() -> None:
    """Is a writer like the one beneath, and closes that."""
    beneath = io.BufferedWriter(io.FileIO(os.open(os.devnull, os.O_WRONLY), "w"))
    answer = AnswerFile(beneath)
    assert (answer.writable(), answer.fileno(), answer.raw) == (True, beneath.fileno(), beneath.raw)
    answer.writelines([b"a", b"b"])
    answer.flush()
    answer.close()
    assert (answer.closed, beneath.closed) == (True, True)
