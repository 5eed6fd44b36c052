"""The programs, as data: what is installed of them, which of their own tests run, how they are served, what is known.

What is a program's own fault stands beside it with the reason, and is tested for: a fault that is gone is a failure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    """Tests of a program, as arguments of pytest, below its source distribution."""

    tests: tuple[str, ...]
    options: tuple[str, ...] = ()
    folder: str = "."
    path: tuple[str, ...] = ()  # of PYTHONPATH
    env: Mapping[str, str] = field(default_factory=dict)
    own_faults: Mapping[str, str] = field(default_factory=dict)  # what fails over socketserver too: pattern and reason
    differs: Mapping[str, str] = field(default_factory=dict)  # what is meant to differ over us: pattern and reason


@dataclass(frozen=True)
class Program:
    """A program that people have written on socketserver."""

    name: str
    distribution: str
    served: str  # module:attribute below served/, a target of `prefork run`
    suite: Suite | None = None
    datagrams: bool = False
    logs: tuple[str, ...] = ()  # what of its log is no complaint
    quick: bool = False  # runs in CI
    debian: Mapping[str, str] = field(default_factory=dict)  # commands that it needs, and their packages
    remarks: str = ""


PROGRAMS = (
    Program("pyzor", "pyzor", "pyzor_server:server", datagrams=True),
    Program("Radicale", "radicale", "radicale_server:server"),
    Program("jsonrpclib-pelix", "jsonrpclib-pelix", "jsonrpclib_server:plain"),
    Program("jsonrpclib-pelix, pooled", "jsonrpclib-pelix", "jsonrpclib_server:pooled"),
    Program("PyWebDAV3", "pywebdav3", "pywebdav_server:server"),
    Program("pypiserver", "pypiserver", "pypiserver_server:server"),
    Program("Django", "django", "django_server:server"),
    Program("werkzeug", "werkzeug", "werkzeug_server:server"),
    Program("dulwich", "dulwich", "dulwich_server:server"),
    Program("impacket", "impacket", "impacket_server:server", debian={"smbclient": "smbclient"}),
    Program("hl7apy", "hl7apy", "hl7apy_server:server"),
    Program("pygopherd", "pygopherd", "pygopherd_server:threaded"),
    Program("pygopherd, forking", "pygopherd", "pygopherd_server:forked"),
)
