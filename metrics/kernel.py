"""Figures that only the kernel knows, about sockets and the calling process. Owns nothing; may run in any process.

A figure that the kernel does not tell is None, never zero: on an old kernel, in a namespace or a sandbox that refuses,
for a kind of socket that has no such figure, on a system other than Linux. Nothing here may raise.
"""

import fcntl
import os
import socket
import struct
import sys
from typing import Literal, NamedTuple

ORDER: Literal["little", "big"] = sys.byteorder

# tcp(7), asm-generic/socket.h
TCP_INFO = 11
TCP_LISTEN = 10  # Unix listeners are in this state too
SO_MEMINFO = 55
LOOKS = 4  # at most, at a connection to which more and more comes
SIOCINQ = 0x541B  # asm-generic/ioctls.h

# struct tcp_info of linux/tcp.h: these offsets have been the same since Linux 4.6.
STATE_AT, UNACKED_AT = 0, 24
WAIT = struct.Struct("=44xI108xI")  # milliseconds since data were sent, segments of data sent
TCP_INFO_SIZE = WAIT.size
# Since Linux 4.19: the state, bytes received, not sent yet, sent, retransmitted.
BYTES = struct.Struct("=B127xQ8xI52xQQ")
AFTER_FIN = (6, 8, 9, 11)  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the client's FIN was counted as a byte

UCRED = struct.Struct("=iII")  # pid, uid, gid, unix(7)

# enum sk_meminfo of linux/sock_diag.h: bytes in the receive queue, datagrams dropped because it was full.
MEMINFO = struct.Struct("=I28xI")

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
ALL_STATES = 0xFFFF_FFFF
UDIAG_SHOW_RQLEN = 0x10
UNIX_DIAG_RQLEN = 4
NO_COOKIE = 0xFFFF_FFFF
NETLINK_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
UNIX_DIAG_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, pad, states, inode, show, cookie
UNIX_DIAG_ANSWER = struct.Struct("=BBBxIII")  # family, type, state, inode, cookie
ATTRIBUTE = struct.Struct("=HH")  # length, type
QUEUE = struct.Struct("=II")  # length, limit


def oom_kills() -> int | None:
    """Return the number of OOM kills on the whole machine since boot (/proc/vmstat, proc(5))."""
    return _field("/proc/vmstat", "oom_kill")


def somaxconn() -> int | None:
    """Return the longest accept queue that the kernel allows, whatever `listen()` asks for (listen(2))."""
    return sysctl("net.core.somaxconn")


def sysctl(name: str) -> int | None:
    """Return the number that this parameter of the kernel has; None where it does not tell."""
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def listen_overflows_and_drops() -> tuple[int | None, int | None]:
    """Return the connections that found an accept queue full, and all that were dropped on the way to one.

    For the whole network namespace: ListenOverflows and ListenDrops of TcpExt in /proc/self/net/netstat, which has one
    line of names and one of numbers.
    """
    try:
        with open("/proc/self/net/netstat") as file:
            names, numbers = (line.split() for line in file if line.startswith("TcpExt:"))
        found = dict(zip(names[1:], map(int, numbers[1:]), strict=True))
    except (OSError, ValueError):
        return None, None
    return found.get("ListenOverflows"), found.get("ListenDrops")


def accept_queue(sock: socket.socket) -> tuple[int | None, int | None]:
    """Return the length of a listener's accept queue and its limit, which is `min(backlog, somaxconn)` (listen(2))."""
    if sys.platform != "linux":
        return None, None
    try:
        found = _unix_queue(sock) if sock.family == socket.AF_UNIX else _tcp_queue(sock)
    except (OSError, struct.error):
        found = None
    return found or (None, None)


def datagram_queue(sock: socket.socket, *others: socket.socket) -> tuple[int | None, int | None]:
    """Return the bytes in the receive queues of datagram sockets, and the datagrams dropped because these were full.

    The kernel counts the bytes with their overhead. Unknown for Unix datagrams: they are charged to the sender, which
    waits for room.
    """
    if sys.platform != "linux" or sock.family == socket.AF_UNIX or sock.type != socket.SOCK_DGRAM:
        return None, None
    try:
        told = [
            MEMINFO.unpack(each.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)) for each in (sock, *others)
        ]
    except (OSError, struct.error):
        return None, None
    return sum(queued for queued, _ in told), sum(dropped for _, dropped in told)


def queue_wait_ns(sock: object) -> int | None:
    """Return how long a TCP connection waited to be accepted, in nanoseconds. Costs about a microsecond.

    Must be called right after the accept. Until data is sent, tcpi_last_data_sent counts from the handshake, in jiffies
    of up to 10 ms. Unknown for anything but a TCP connection, and once something was sent (a TLS handshake in
    `get_request()`).
    """
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TCP_INFO_SIZE)  # type: ignore[attr-defined]
        since_sent_ms, sent = WAIT.unpack(info)
    except Exception:  # a request can be any object: a datagram is a tuple, what stands for a socket raises anything
        return None
    return None if sent else since_sent_ms * 1_000_000


def tcp_bytes(sock: object) -> tuple[int | None, int | None]:
    """Return the bytes received from the peer of a TCP connection and written to it; unknown once it is closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, BYTES.size)  # type: ignore[attr-defined]
        state, received, unsent, sent, again = BYTES.unpack(info)
        return received - (state in AFTER_FIN), sent - again + unsent
    except Exception:  # see queue_wait_ns()
        return None, None


def unread_bytes(sock: object) -> int | None:
    """Return how many bytes of those received nobody has read yet (SIOCINQ, tcp(7))."""
    try:
        return _u32(fcntl.ioctl(sock, SIOCINQ, bytes(4)), 0)  # type: ignore[call-overload]
    except Exception:  # see queue_wait_ns()
        return None


def tcp_bytes_read(sock: object) -> tuple[int | None, int | None]:
    """Return the bytes that were read from a TCP connection and written to it; unknown once it is closed."""
    unread = unread_bytes(sock)
    for _ in range(LOOKS):
        received, sent = tcp_bytes(sock)
        before, unread = unread, unread_bytes(sock)
        if unread == before:
            break  # nothing has come between the two questions
    return None if received is None or unread is None else received - unread, sent


class PeerCredentials(NamedTuple):
    """The process at the other end of a Unix stream connection, as it was when it connected (unix(7))."""

    pid: int  # 0: it is in another pid namespace
    uid: int
    gid: int


def peer_credentials(sock: object) -> PeerCredentials | None:
    """Return who is at the other end of this connection; None if it is no Unix stream connection (SO_PEERCRED)."""
    try:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):  # type: ignore[attr-defined]
            return None  # other kinds report no process, unix(7)
        packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)  # type: ignore[attr-defined]
        return PeerCredentials._make(UCRED.unpack(packed))
    except Exception:  # see queue_wait_ns()
        return None


def unix_peer(sock: object) -> tuple[int, int] | None:
    """Return pid and uid of the peer of a Unix stream connection."""
    found = peer_credentials(sock)
    return None if found is None else found[:2]


def unix_peer_text(sock: object) -> str | None:
    """Return a text that identifies a client of a Unix listener, which usually has no address."""
    found = unix_peer(sock)
    return None if found is None else "pid={} uid={}".format(*found)


def descriptors() -> tuple[int | None, int | None]:
    """Return the number of open descriptors of this process, and its limit (soft RLIMIT_NOFILE, getrlimit(2))."""
    import resource  # not on every system

    try:
        # Since Linux 6.2 the directory's size is the count; before, it is 0, and listing takes a descriptor itself.
        opened = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        opened = None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return opened, None if limit == resource.RLIM_INFINITY else limit


def _tcp_queue(sock: socket.socket) -> tuple[int, int] | None:
    """Return length and limit from tcp_info: for a listener, two of its fields hold these instead."""
    info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TCP_INFO_SIZE)
    if info[STATE_AT] != TCP_LISTEN:
        return None
    return _u32(info, UNACKED_AT), _u32(info, UNACKED_AT + 4)


def _unix_queue(sock: socket.socket) -> tuple[int, int] | None:
    """Return length and limit by netlink (sock_diag(7)): no socket option has them, nor does /proc/net/unix."""
    inode = os.fstat(sock.fileno()).st_ino
    body = UNIX_DIAG_REQUEST.pack(socket.AF_UNIX, 0, 0, ALL_STATES, inode, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE)
    head = NETLINK_HEADER.pack(NETLINK_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # it answers at once; this overrides the program's default timeout
        netlink.sendto(head + body, (0, 0))
        return _rqlen(netlink.recv(4096), inode)


def _rqlen(answer: bytes, inode: int) -> tuple[int, int] | None:
    """Return the attribute UNIX_DIAG_RQLEN of an answer about this listener; None for any other answer."""
    length, kind, *_ = NETLINK_HEADER.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    _, _, state, found, *_ = UNIX_DIAG_ANSWER.unpack_from(answer, NETLINK_HEADER.size)
    if state != TCP_LISTEN or found != inode:
        return None
    at = NETLINK_HEADER.size + UNIX_DIAG_ANSWER.size
    while at + ATTRIBUTE.size <= length:
        size, attribute = ATTRIBUTE.unpack_from(answer, at)
        if attribute == UNIX_DIAG_RQLEN:
            return QUEUE.unpack_from(answer, at + ATTRIBUTE.size)
        at += max(ATTRIBUTE.size, (size + 3) & ~3)
    return None


def _u32(info: bytes, at: int) -> int:
    return int.from_bytes(info[at : at + 4], ORDER)


def _field(path: str, name: str) -> int | None:
    try:
        with open(path) as file:
            return next((int(line.split()[1]) for line in file if line.startswith(name + " ")), None)
    except OSError:
        return None
