"""What --bind accepts, and what it says about the rest."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import PreForkingUnixStreamServer, StreamRequestHandler, UnixStreamServer
from prefork.errors import BindError, ConfigError
from prefork.sockets.addresses import Address, address_text, control_path, parse_address
from prefork.sockets.bindable import bindable, hint_of
from prefork.workers.unnamed_peer import UNNAMED


@pytest.mark.parametrize(
    ("text", "kind", "address", "family"),
    [
        ("127.0.0.1:9999", "tcp", ("127.0.0.1", 9999), socket.AF_INET),
        ("localhost:0", "tcp", ("localhost", 0), None),
        (":80", "tcp", ("", 80), None),
        ("[::]:80", "tcp", ("::", 80), socket.AF_INET6),
        ("[fe80::1%eth0]:80", "tcp", ("fe80::1%eth0", 80), socket.AF_INET6),
        ("tcp://127.0.0.1:65535", "tcp", ("127.0.0.1", 65535), socket.AF_INET),
        ("udp://:514", "udp", ("", 514), None),
        ("udp://[::1]:53", "udp", ("::1", 53), socket.AF_INET6),
        ("unix:/run/a:b.sock", "unix", "/run/a:b.sock", socket.AF_UNIX),
        ("unix:relative", "unix", "relative", socket.AF_UNIX),
        ("unixgram:/run/log", "unixgram", "/run/log", socket.AF_UNIX),
        ("unix:@name", "unix", "\0name", socket.AF_UNIX),
        ("unix:@a@b", "unix", "\0a@b", socket.AF_UNIX),
        ("unixgram:@name", "unixgram", "\0name", socket.AF_UNIX),
        ("unix:./@name", "unix", "./@name", socket.AF_UNIX),
    ],
)
def test_every_form(text: str, kind: str, address: object, family: object) -> None:
    """Each documented form becomes the address that it names."""
    assert parse_address(text) == Address(kind, address, None, text, family)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it must be host:port"),
        ("9999", "it must be host:port, as in 127.0.0.1:9999 or :9999"),
        ("udp:9999", "other kinds are written udp://"),
        ("udp:127.0.0.1:9999", "other kinds are written udp://"),
        ("fd:3", "other kinds are written udp://127.0.0.1:9999, fd://3"),
        ("/run/upper.sock", "a path is written unix:/path"),
        ("./upper.sock", "a path is written unix:/path"),
        (":80,:81", "several are given one by one, as in --bind A --bind B"),
        ("host:80 host:81", "several are given one by one"),
        (" host:80", "several are given one by one"),
        ("host:", "it must be host:port"),
        ("host:http", "it must be host:port"),
        ("host:-1", "it must be host:port"),
        ("host:65536", "the port 65536 is above 65535"),
        ("::1:80", "an IPv6 address stands in brackets"),
        ("[127.0.0.1]:80", "'127.0.0.1' is not an IPv6 address"),
        ("[::1]x:80", "it must be host:port"),
        ("http://localhost:80", "it is none of host:port"),
        ("unix:", "it must be unix:/path"),
        ("unix:@", "it must be unix:/path or unix:@name"),
        ("unix:@" + "x" * 107, "its path is longer than 107 bytes"),
        ("unix:/" + "x" * 107, "its path is longer than 107 bytes"),
        ("unix:/a\0b", "a path has no zero byte"),
        ("fd://", "it must be fd://N"),
        ("fd://-1", "it must be fd://N"),
        ("fd://99999", "descriptor 99999 is no open socket"),
        ("systemd", "LISTEN_FDS is not set"),
        ("systemd:web", "LISTEN_FDS is not set"),
    ],
)
def test_wrong_address_is_one_sentence(text: str, reason: str) -> None:
    """A wrong address is refused with its text and what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert str(caught.value).startswith(f"could not read the address {text!r}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("code", "address", "said"),
    [
        (errno.ENOENT, "no/a", "There is no folder no."),
        (errno.ENOENT, "/no/a", "There is no folder /no."),
        (errno.ENOENT, "a", ""),
        (errno.ENOENT, b"/no/\xff", "There is no folder /no."),
        (errno.EACCES, "/root/a", ""),
        (errno.EACCES, ("", 80), "A port below 1024 needs root or CAP_NET_BIND_SERVICE."),
        (errno.EACCES, ("", 1024), ""),
        (errno.EACCES, ("", 0), ""),
        (errno.EADDRNOTAVAIL, ("192.0.2.1", 80), "No interface of this host has that address."),
        (errno.EINVAL, ("fe80::1", 80), "A link-local address needs its interface, as in [fe80::1%eth0]:80."),
        (errno.EINVAL, ("fe80::1", 80, 0, 7), ""),
        (errno.EINVAL, ("127.0.0.1", 80), ""),
        (socket.EAI_NONAME, ("*", 80), "Every address of the host is :80, or [::]:80."),
        (socket.EAI_NONAME, ("nohost", 80), ""),
        (errno.EADDRINUSE, (), ""),
    ],
)
def test_hint_of_a_bind_that_failed(code: int, address: object, said: str) -> None:
    """What the words of the kernel leave open is a sentence of its own, and nothing else is added."""
    assert hint_of(OSError(code, "refused"), address) == said


def test_hint_is_a_note() -> None:
    """The error that a program catches has the hint beside its one sentence."""
    with pytest.raises(BindError, match="could not bind no/such: no such file or directory") as caught:
        PreForkingUnixStreamServer("no/such", StreamRequestHandler)
    assert caught.value.__notes__ == ["There is no folder no."]


@given(st.text(alphabet=":/[]%.@\0ax0159fduni", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but ConfigError."""
    for read in (parse_address, control_path):
        with contextlib.suppress(ConfigError):
            read(text)


@pytest.mark.parametrize("text", ["/run/a:b.sock", "relative", "unix:/run/a", "unix:a:b", "./@name", "/"])
def test_path_of_a_control_socket(text: str) -> None:
    """It is said with or without unix:, alike for whoever listens there and whoever asks."""
    assert control_path(text) == text.removeprefix("unix:")


@pytest.mark.parametrize("text", ["", "@name", "unix:@name", "127.0.0.1:9", "udp://:9", "udp://", "unixgram:/c", "c:d"])
def test_what_is_no_control_socket(text: str) -> None:
    """An address of another kind is none, nor is an abstract name, which has no mode."""
    with pytest.raises(ConfigError, match=r"could not read the address '.*/path"):
        control_path(text)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_descriptor_says_its_kind(listener: socket.socket, tmp_path: Path) -> None:
    """fd://N takes family, kind and address from the socket itself, which stays open."""
    port = listener.getsockname()[1]
    text = f"fd://{listener.fileno()}"
    assert parse_address(text) == Address("tcp", ("127.0.0.1", port), listener.fileno(), text, socket.AF_INET)
    assert listener.getsockname()[1] == port
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        found = parse_address(f"fd://{sock.fileno()}")
    assert (found.kind, found.address, found.family) == ("unixgram", path, socket.AF_UNIX)


def test_descriptor_that_is_no_listener() -> None:
    """A file, and a stream socket that does not listen, are refused."""
    with socket.socket() as sock, pytest.raises(ConfigError, match="is not a listening socket"):
        parse_address(f"fd://{sock.fileno()}")
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(ConfigError, match="is no open socket"):
            parse_address(f"fd://{fd}")
    finally:
        os.close(fd)


LO = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        (["127.0.0.1", 80], ("127.0.0.1", 80)),
        (("127.0.0.1", "80"), ("127.0.0.1", 80)),
        (["::1", "80"], ("::1", 80)),
        (("fe80::1%lo", 80), ("fe80::1", 80, 0, LO)),
        (("fe80::1%7", "80"), ("fe80::1", 80, 0, 7)),
        (("fe80::1%lo", 80, 5), ("fe80::1", 80, 5, LO)),
        (("fe80::1%lo", 80, 0, 9), ("fe80::1%lo", 80, 0, 9)),
        (("localhost%lo", 80), ("localhost%lo", 80)),
        (("localhost", "http"), ("localhost", "http")),
        (("localhost", "\N{SUPERSCRIPT TWO}"), ("localhost", "\N{SUPERSCRIPT TWO}")),
        (Path("s"), "s"),
        ("s", "s"),
        (b"\0s", b"\0s"),
        (None, None),
    ],
)
def test_what_can_be_bound(address: object, bound: object) -> None:
    """What a program may write for an address is one that bind() takes; what is none is left for it to refuse."""
    assert bindable(address) == bound
    assert type(bindable(address)) is type(bound)


def test_no_such_interface() -> None:
    """An interface that does not exist is one sentence, as an address that does not exist is."""
    with pytest.raises(BindError, match=r"^could not bind \[fe80::1%none\]:80: there is no interface none$"):
        bindable(("fe80::1%none", 80))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("fe80::1", 80, 0, LO), "[fe80::1%lo]:80"), (("fe80::1", 80, 0, 1 << 20), "[fe80::1%1048576]:80"),
        (("fe80::1%lo", 80), "[fe80::1%lo]:80"), (("::1", 80, 0, 0), "[::1]:80"),
    ],
)  # fmt: skip
def test_the_scope_is_shown(address: tuple[str, int], text: str) -> None:
    """An address of one interface is shown with it, as it is written."""
    assert address_text(address) == text


def test_a_client_without_a_name() -> None:
    """It is the empty text that it was, and can be asked for its host, as http.server does."""
    assert UNNAMED == ""
    assert not UNNAMED
    assert (UNNAMED[0], UNNAMED[:1], f"{UNNAMED}") == ("", "", "")


def test_a_client_without_a_name_of_a_plain_server(tmp_path: Path) -> None:
    """A server without a pool has it too."""
    with UnixStreamServer(str(tmp_path / "s"), StreamRequestHandler) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(server.server_address)
        request, client_address = server.get_request()
        request.close()
        assert client_address is UNNAMED
