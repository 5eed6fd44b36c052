"""The settings of a pool: the class attributes of PreForkingMixIn, and the only place of their defaults.

Holds values only. settings/fields.py reads them for the command line, variables, files, validation and the reference.
Evaluated in any process, when the class is defined.
"""

import os
from typing import Annotated

from prefork.workers.definitions import gives_way
from prefork.workers.open_lanes import MOST_LANES

from .commands import WORKERS_MAX
from .server import TCPServer
from .settings.cpus import usable_cpus
from .settings.fields import Setting


@gives_way
class PoolSettings:
    """The settings of a pool, listed in REFERENCE.md. All durations are in seconds, all sizes in bytes."""

    max_children: Annotated[
        int,
        Setting("most workers at once", group="Pool", at_least=1, at_most=WORKERS_MAX,
                default_text="2 × usable CPUs + 1"),
    ] = min(2 * usable_cpus() + 1, WORKERS_MAX)  # fmt: skip
    min_children: Annotated[
        int | None, Setting("fewest workers", group="Pool", at_least=1, default_text="max_children")
    ] = None
    min_spare_children: Annotated[
        int | None, Setting("start workers when fewer than this are idle", group="Pool", at_least=1)
    ] = None
    max_spare_children: Annotated[
        int | None, Setting("drain workers when more than this are idle", group="Pool", at_least=1)
    ] = None
    max_threads: Annotated[
        int | None,
        Setting("most requests at once in one worker of a threading pool; off: up to 4,096", group="Pool", at_least=1,
                at_most=MOST_LANES),
    ] = 10  # fmt: skip
    gc_freeze: Annotated[
        bool, Setting("collect and freeze garbage before the first fork, so that memory stays shared", group="Pool")
    ] = True

    request_timeout: Annotated[
        float | None,
        Setting(
            "cut a request that takes longer, and replace its worker; without KeepAliveMixIn it is a whole connection",
            group="Requests",
            unit="s",
            above=0,
        ),
    ] = None
    slow_request_timeout: Annotated[
        float | None, Setting("log the stacks behind a longer request", group="Requests", unit="s", above=0)
    ] = None

    max_requests: Annotated[
        int | None,
        Setting("replace a worker after so many requests, or up to a tenth fewer", group="Recycling", at_least=1),
    ] = None
    max_lifetime: Annotated[
        float | None,
        Setting("replace a worker after this time, or up to a tenth less", group="Recycling", unit="s", above=0),
    ] = None
    max_memory: Annotated[
        int | None,
        Setting("replace a worker whose private memory stays above", group="Recycling", unit="bytes", at_least=1),
    ] = None

    control_socket: Annotated[
        str | None,
        Setting("where prefork ctl commands this service", name="control", group="Control", unit="address",
                kinds=("unix",)),
    ] = None  # fmt: skip
    control_mode: Annotated[
        int, Setting("mode of that path", group="Control", unit="mode", at_least=0, at_most=0o777)
    ] = 0o600
    control_owner: Annotated[str | None, Setting("give the path to USER, USER:GROUP or :GROUP", group="Control")] = None
    control_allow: Annotated[
        str | None,
        Setting("users, by name or number, with commas, who may command; root and its own may", group="Control"),
    ] = None
    control_allow_read: Annotated[
        str | None, Setting("users who may only look: status, workers, stacks, version", group="Control")
    ] = None

    boot_timeout: Annotated[
        float, Setting("kill a worker that is not ready after this time", group="Timeouts", unit="s", above=0)
    ] = 60.0
    graceful_timeout: Annotated[
        float,
        Setting("kill what has not drained after this time", group="Timeouts", unit="s", above=0,
                default_text="30 s (8 s as PID 1)"),
    ] = 8.0 if os.getpid() == 1 else 30.0  # fmt: skip
    stall_timeout: Annotated[
        float | None,
        Setting("replace a worker that has no request in hand and takes none from a queue for this time",
                group="Timeouts", unit="s", above=0),
    ] = 5.0  # fmt: skip
    drain_delay: Annotated[
        float, Setting("go on accepting for so long when told to drain, not ready any more", group="Timeouts", unit="s",
                       at_least=0),
    ] = 0.0  # fmt: skip
    drain_connections: Annotated[
        str, Setting("what a drain does with a stream request in hand: wait for its end, or let it read what was sent "
                     "and then the end of file (eof)", group="Requests", choices=("wait", "eof")),
    ] = "wait"  # fmt: skip
    max_restart_delay: Annotated[
        float, Setting("longest wait between starts while workers die at boot", group="Timeouts", unit="s", above=0)
    ] = 30.0

    keepalive_timeout: Annotated[
        float | None,
        Setting("close a kept connection that has been idle for this time (KeepAliveMixIn)", group="Kept connections",
                unit="s", above=0),
    ] = 75.0  # fmt: skip
    max_idle_connections: Annotated[
        int | None,
        Setting("close the longest idle of the kept connections when more than this are idle", group="Kept connections",
                at_least=1, default_text="as many as descriptors allow"),
    ] = None  # fmt: skip
    incomplete_timeout: Annotated[
        float,
        Setting("close a kept connection whose next request is begun and not whole after this time (complete())",
                group="Kept connections", unit="s", above=0),
    ] = 10.0  # fmt: skip

    request_queue_size: Annotated[
        int, Setting("connections the kernel keeps waiting", group="Listening", at_least=1, at_most=2**31 - 1,
                     default_text="1024, or Python's own where that is more"),
    ] = max(1024, TCPServer.request_queue_size)  # fmt: skip
    socket_mode: Annotated[
        int | None, Setting("mode of the path of a Unix socket; else what the umask leaves", group="Listening",
                            unit="mode", at_least=0, at_most=0o777, reloadable=False),
    ] = None  # fmt: skip
    socket_owner: Annotated[
        str | None, Setting("owner of the path of a Unix socket: USER, USER:GROUP or :GROUP", group="Listening",
                            reloadable=False),
    ] = None  # fmt: skip

    tcp_keepalive: Annotated[
        float | None,
        Setting("ask a client that has been silent for this time whether it is there, and close the connection of one "
                "that is not", group="Sockets", unit="s", at_least=1, at_most=32767),
    ] = None  # fmt: skip
    tcp_keepalive_interval: Annotated[
        float | None,
        Setting("ask again after this time without an answer", group="Sockets", unit="s", at_least=1, at_most=32767,
                default_text="the system's"),
    ] = None  # fmt: skip
    tcp_keepalive_count: Annotated[
        int | None,
        Setting("ask so often", group="Sockets", at_least=1, at_most=127, default_text="the system's"),
    ] = None
    tcp_nodelay: Annotated[
        bool, Setting("send what a handler writes at once, also beside data on its way", group="Sockets")
    ] = False
    tcp_defer_accept: Annotated[
        float | None,
        Setting("leave a connection to the kernel until its client has sent something, at most about this time",
                group="Sockets", unit="s", at_least=1, at_most=255),
    ] = None  # fmt: skip
    tcp_fastopen: Annotated[
        int | None,
        Setting("take data with the first packet of a connection; so many may be in that state", group="Sockets",
                at_least=1, at_most=65535),
    ] = None  # fmt: skip
    receive_buffer: Annotated[
        int | None,
        Setting("bytes that the kernel keeps for a connection, or of datagrams for the socket, until they are read",
                group="Sockets", unit="bytes", at_least=1, at_most=1 << 30, default_text="the system's"),
    ] = None  # fmt: skip
    send_buffer: Annotated[
        int | None,
        Setting("bytes that the kernel keeps until they are sent", group="Sockets", unit="bytes", at_least=1,
                at_most=1 << 30, default_text="the system's"),
    ] = None  # fmt: skip
    bind_to_device: Annotated[
        str | None, Setting("serve only what comes through this network interface", group="Listening",
                            metavar="DEVICE", reloadable=False),
    ] = None  # fmt: skip
    freebind: Annotated[
        bool, Setting("bind to an address that the host does not have, or not yet", group="Listening",
                      reloadable=False),
    ] = False  # fmt: skip
    peer_affinity: Annotated[
        bool,
        Setting("have all datagrams of one peer, by its address and port, received by one worker (UDP)",
                group="Listening", reloadable=False),
    ] = False  # fmt: skip

    tls_certificate: Annotated[
        str | None,
        Setting("serve over TLS with the certificate in this file (PEM), and its chain", group="TLS", metavar="FILE"),
    ] = None
    tls_key: Annotated[
        str | None,
        Setting("file of its key (PEM)", group="TLS", metavar="FILE", default_text="in the certificate's file"),
    ] = None
    tls_client_ca: Annotated[
        str | None,
        Setting("ask clients for a certificate of the authorities in this file (PEM)", group="TLS", metavar="FILE"),
    ] = None
    tls_verify_client: Annotated[
        str, Setting("whether a client without one is served", group="TLS", choices=("required", "optional"))
    ] = "required"
    tls_minimum_version: Annotated[str, Setting("oldest version of TLS", group="TLS", choices=("1.2", "1.3"))] = "1.2"
    tls_alpn: Annotated[
        str | None,
        Setting("protocols to agree on, the best first (as in h2, http/1.1)", group="TLS"),
    ] = None
    tls_handshake_timeout: Annotated[
        float, Setting("close a connection whose handshake is not done after this time", group="TLS", unit="s", above=0)
    ] = 10.0

    allowed_clients: Annotated[
        str | None,
        Setting("close connections, and drop datagrams, from anywhere else", group="Admission", unit="networks"),
    ] = None
    denied_clients: Annotated[
        str | None,
        Setting("close connections, and drop datagrams, from these networks", group="Admission", unit="networks"),
    ] = None
    first_byte_timeout: Annotated[
        float | None,
        Setting("close a connection that has said nothing for this time", group="Admission", unit="s", above=0),
    ] = None
    max_queue_wait: Annotated[
        float | None,
        Setting("close a connection that has waited longer in the kernel's queue for a worker, at once",
                group="Admission", unit="s", above=0),
    ] = None  # fmt: skip
    max_connections: Annotated[
        int | None,
        Setting("close a connection while the pool serves so many, or keeps them", group="Admission", at_least=1),
    ] = None
    max_connections_per_client: Annotated[
        int | None,
        Setting("close a connection while the pool serves or keeps so many of the same client, which is an IPv4 "
                "address, or an IPv6 network of 64 bits", group="Admission", at_least=1),
    ] = None  # fmt: skip
    proxy_trusted: Annotated[
        str | None,
        Setting("take the header of the PROXY protocol from each connection or datagram, which must be from these "
                "networks, or from a Unix socket (unix)", group="Admission", unit="networks"),
    ] = None  # fmt: skip
    proxy_header_timeout: Annotated[
        float, Setting("close a connection whose PROXY header is not there after this time", group="Admission",
                       unit="s", above=0),
    ] = 5.0  # fmt: skip

    user: Annotated[
        str | None,
        Setting("become this user, by name or number, in each process that serves, once all that needs root is done",
                group="Privileges"),
    ] = None  # fmt: skip
    group: Annotated[
        str | None,
        Setting("become this group instead of that of the user", group="Privileges", default_text="the user's"),
    ] = None
    umask: Annotated[
        int | None, Setting("umask of each process that serves", group="Privileges", unit="mode", at_least=0,
                            at_most=0o777, default_text="as it was started"),
    ] = None  # fmt: skip
    no_new_privs: Annotated[
        bool, Setting("in each process that serves, no program that is executed may have more rights than it (setuid, "
                      "file capabilities)", group="Privileges"),
    ] = False  # fmt: skip

    working_directory: Annotated[
        str | None, Setting("run in this directory; a reload starts in it, by symlinks as they lead then",
                            group="Service", unit="directory", default_text="where it was started"),
    ] = None  # fmt: skip

    access_log: Annotated[bool, Setting("log a line for each request, whatever the log level", group="Logs")] = False

    reload_on_change: Annotated[
        bool, Setting("reload when a file of the program changes", group="Development", flag=True)
    ] = False
