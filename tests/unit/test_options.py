"""Options of a listener: what is put on a socket, what is taken back, and what is refused."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import prefork
from prefork.errors import ConfigError
from prefork.sockets import options as module
from prefork.sockets.options import OPTIONS, SocketOptions, check_shared_port

NONE = SocketOptions()
VALUES = {
    "tcp_keepalive": 30.0, "tcp_keepalive_interval": 4.2, "tcp_keepalive_count": 3, "tcp_nodelay": True,
    "tcp_defer_accept": 1.0, "tcp_fastopen": 16, "receive_buffer": 50_000, "send_buffer": 60_000,
    "bind_to_device": "lo", "freebind": True,
}  # fmt: skip
FOUND = {
    "tcp_keepalive": 30, "tcp_keepalive_interval": 5, "tcp_keepalive_count": 3, "tcp_nodelay": 1, "tcp_defer_accept": 1,
    "tcp_fastopen": 16, "receive_buffer": 100_000, "send_buffer": 120_000, "freebind": 1,
}  # fmt: skip


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def found(sock: socket.socket, name: str) -> int:
    return sock.getsockopt(OPTIONS[name].level, OPTIONS[name].number)


def test_all_of_them(sock: socket.socket) -> None:
    """Each setting has one, and times are whole seconds, no shorter than asked for."""
    assert VALUES.keys() == OPTIONS.keys()
    SocketOptions(VALUES).put_on(sock, NONE)
    assert {name: found(sock, name) for name in FOUND} == FOUND
    assert sock.getsockopt(socket.SOL_SOCKET, 25, 16) == b"lo\0"
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_only_what_is_asked_for_is_an_option() -> None:
    """Off leaves a socket as it came: systemd may have set it."""
    setting = type("Setting", (), dict.fromkeys(OPTIONS) | {"freebind": False, "tcp_nodelay": True})
    assert SocketOptions.of(setting()) == {"tcp_nodelay": True}
    assert SocketOptions.of(object()) == {}


def test_what_is_gone_is_as_the_system_has_it(sock: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """But for what takes a new socket, which is said."""
    before = SocketOptions(VALUES)
    system = {name: found(sock, name) for name in FOUND}
    before.put_on(sock, NONE)
    caplog.clear()
    NONE.put_on(sock, before)
    kept = {"receive_buffer", "send_buffer", "freebind"}
    assert {name for name in FOUND if found(sock, name) != system[name]} == kept
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert {message.split()[0] for message in caplog.messages} == {*kept, "bind_to_device"}
    assert "stays as it was: it takes a restart" in caplog.messages[0]


def test_what_is_there_already_is_not_set_again(sock: socket.socket) -> None:
    SocketOptions(tcp_nodelay=True).put_on(sock, SocketOptions(tcp_nodelay=True))
    assert not found(sock, "tcp_nodelay")


@pytest.mark.parametrize(("name", "limit"), [("receive_buffer", "rmem_max"), ("send_buffer", "wmem_max")])
def test_kernel_cuts_a_buffer(name: str, limit: str, sock: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    SocketOptions({name: 1 << 30}).put_on(sock, NONE)
    got = found(sock, name) // 2
    assert caplog.messages == [f"{name} of {1 << 30} is cut to {got} by the kernel (net.core.{limit})"]


@pytest.mark.parametrize(("sysctl", "said"), [(None, True), (0, True), (1, True), (2, False), (3, False)])
def test_fastopen_without_the_sysctl(
    sysctl: int | None, said: bool, sock: socket.socket, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(module, "sysctl", {"net.ipv4.tcp_fastopen": sysctl}.get)
    SocketOptions(tcp_fastopen=3).put_on(sock, NONE)
    assert any("tcp_fastopen has no effect: net.ipv4.tcp_fastopen" in text for text in caplog.messages) == said


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_kind_of_socket(name: str) -> None:
    """Nothing of it is for a Unix socket; of UDP what is not TCP's."""
    one = SocketOptions({name: VALUES[name]})
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(type=socket.SOCK_DGRAM) as udp:
        with pytest.raises(ConfigError, match=rf"could not set {name}: it is for TCP(| and UDP), and this is another"):
            one.put_on(unix, NONE)
        if name.startswith("tcp_"):
            with pytest.raises(ConfigError, match=f"could not set {name}: it is for TCP, and this server takes data"):
                one.put_on(udp, NONE)
        else:
            one.put_on(udp, NONE)


@pytest.mark.parametrize("name", ["tcp_keepalive_interval", "tcp_keepalive_count"])
def test_nothing_for_itself(name: str, sock: socket.socket) -> None:
    with pytest.raises(ConfigError, match=f"could not set {name}: there is no tcp_keepalive"):
        SocketOptions({name: 3}).put_on(sock, NONE)


def test_kernel_refuses(sock: socket.socket) -> None:
    with pytest.raises(ConfigError, match="could not set bind_to_device to nowhere0: no such device"):
        SocketOptions(bind_to_device="nowhere0").put_on(sock, NONE)


class Shared(prefork.PreForkingTCPServer):
    allow_reuse_port = True


@pytest.mark.parametrize(
    ("cls", "migrates", "refused"),
    [
        (Shared, 0, True), (Shared, None, True), (Shared, 1, False), (prefork.PreForkingTCPServer, 0, False),
        (type("Unix", (prefork.PreForkingUnixStreamServer,), {"allow_reuse_port": True}), 0, False),
        (type("Datagrams", (prefork.PreForkingUDPServer,), {"allow_reuse_port": True}), 0, False),
        (type("Standard", (Shared,), {"allow_reuse_port": True, "__module__": "http.server"}), 0, False),
    ],
)  # fmt: skip
def test_one_of_several_at_a_port(
    cls: Any, migrates: int | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "sysctl", {"net.ipv4.tcp_migrate_req": migrates}.get)
    server = cls.__new__(cls)
    if refused:
        with pytest.raises(ConfigError, match=r"could not set allow_reuse_port: .* net\.ipv4\.tcp_migrate_req is 1"):
            check_shared_port(server)
    else:
        check_shared_port(server)
