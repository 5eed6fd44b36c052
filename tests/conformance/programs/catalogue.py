"""The programs, as data: what is installed of them, which of their own tests run, how they are served, what is known.

What is a program's own fault stands beside it with the reason, and is tested for: a fault that is gone is a failure.
"Over us" is with prefork in socketserver's place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

NO_TESTS = "its source distribution holds no tests"


@dataclass(frozen=True)
class Suite:
    """Tests of a program: what is run in a folder of its source distribution, by its Python."""

    command: tuple[str, ...]
    folder: str = "."
    own_faults: Mapping[str, str] = field(default_factory=dict)  # what fails over socketserver too: pattern and reason
    differs: Mapping[str, str] = field(default_factory=dict)  # what is meant to differ over us: pattern and reason
    alone: bool = False  # it listens at an address of its choice: the two runs follow each other
    quick: bool = False  # runs in CI


@dataclass(frozen=True)
class Program:
    """A program that people have written on socketserver."""

    name: str
    distribution: str  # of the extra `programs`
    served: str  # module:attribute below served/, a target of `prefork run`
    suite: Suite | None = None
    why_no_suite: str = ""
    datagrams: bool = False
    elsewhere: bool = False  # a request runs where no worker holds it, in a process that the program forks itself
    debian: Mapping[str, str] = field(default_factory=dict)  # commands that its client needs, and their packages


def pytest(*tests: str) -> tuple[str, ...]:
    """The command that runs these, with an eye to nothing but their outcomes."""
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--junitxml=outcomes.xml", *tests)


JSONRPCLIB = Suite(
    pytest(*(f"tests/test_{name}.py" for name in (
        "cgi", "config", "dispatch", "history", "jsonclass", "jsonlib", "protocol", "register_instance", "server",
        "threadpool",
    ))),  # the others import tests/utilities.py, which it lacks; test_unix has a path of its choice
    own_faults={
        r"test_cgi.CGIHandlerTests::test_server": "its source distribution lacks the script that the test asks for",
    },
    quick=True,
)  # fmt: skip
DJANGO = Suite(
    ("runtests.py", "-v2", "--parallel=1", "servers", "builtin_server"),
    folder="tests",
    differs={
        r"servers\.test_basehttp\.WSGIRequestHandlerTestCase": "its double of a connection is made of ThreadingMixIn, "
        "which brings shutdown() along with our loop, and is asked to shut down as a socket would be",
    },
    quick=True,
)

PROGRAMS = (
    Program("pyzor", "pyzor", "pyzor_server:server", datagrams=True, why_no_suite=NO_TESTS),
    Program("Radicale", "radicale", "radicale_server:server", why_no_suite=NO_TESTS),
    Program("jsonrpclib-pelix", "jsonrpclib-pelix", "jsonrpclib_server:plain", JSONRPCLIB),
    Program(
        "jsonrpclib-pelix, pooled", "jsonrpclib-pelix", "jsonrpclib_server:pooled", why_no_suite="as above"
    ),
    Program(
        "PyWebDAV3", "pywebdav3", "pywebdav_server:server",
        why_no_suite="its source distribution builds with git-versioner only, which the package index does not have",
    ),
    Program("pypiserver", "pypiserver", "pypiserver_server:server", why_no_suite=NO_TESTS),
    Program("Django", "django", "django_server:server", DJANGO),
    Program("werkzeug", "werkzeug", "werkzeug_server:server", Suite(pytest("tests/test_serving.py"), quick=True)),
    Program(
        "dulwich", "dulwich", "dulwich_server:server",
        Suite(pytest("tests/test_server.py", "tests/test_web.py", "tests/compat/test_server.py")),
    ),
    Program(
        "impacket", "impacket", "impacket_server:server", Suite(pytest("tests/SMB_RPC/test_smbserver.py"), alone=True),
        debian={"smbclient": "smbclient"},
    ),
    Program("hl7apy", "hl7apy", "hl7apy_server:server", Suite(pytest("tests/test_mllp.py"), alone=True, quick=True)),
    Program(
        "pygopherd", "pygopherd", "pygopherd_server:threaded",
        why_no_suite="its source distribution lacks conf/ and testdata/, without which none of its tests starts",
    ),
    Program("pygopherd, forking", "pygopherd", "pygopherd_server:forked", why_no_suite="as above", elsewhere=True),
)  # fmt: skip
