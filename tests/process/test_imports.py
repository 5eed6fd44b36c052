"""What is in memory that nobody uses: after `import prefork`, and in a worker. Each in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import prefork
from tests.support.clients.connections import ask
from tests.support.programs.command import running

ROOT = Path(prefork.__file__).parents[1]
# Of other people. A program may import any of them; we do not.
HEAVY = {
    "argparse", "ast", "asyncio", "bz2", "concurrent.futures", "dataclasses", "datetime", "dis", "email", "gettext",
    "html", "http", "inspect", "ipaddress", "logging.handlers", "lzma", "multiprocessing", "pathlib", "platform",
    "prometheus_client", "psutil", "queue", "random", "shutil", "ssl", "subprocess", "tempfile", "tomllib",
    "urllib", "uuid", "xml",
}  # fmt: skip
# Of ours: each is for one command, or for one process that is no worker, or for a setting that is off.
APART = {
    "prefork.cli.check", "prefork.cli.config", "prefork.cli.ctl", "prefork.cli.findings", "prefork.cli.single",
    "prefork.cli.top", "prefork.control.client", "prefork.control.render", "prefork.examples",
    "prefork.exporter.server", "prefork.fixtures", "prefork.metrics.application.exposition",
    "prefork.metrics.application.sums", "prefork.metrics.collector", "prefork.reload.degraded",
    "prefork.reload.on_change", "prefork.testing", "prefork.top",
}  # fmt: skip
OF_A_POOL = {
    "prefork.control.server", "prefork.holder.child", "prefork.keepalive", "prefork.reload.generations",
    "prefork.serving_pool", "prefork.workers.access_log", "prefork.workers.admission", "prefork.workers.keeping",
    "prefork.workers.loop", "prefork.workers.thread_pool",
}  # fmt: skip
# What serves: a program that imports the plain classes, and defines its own, needs none of it.
SERVING = (
    "prefork.control", "prefork.exporter", "prefork.holder", "prefork.logs", "prefork.master", "prefork.metrics.board",
    "prefork.metrics.log_events", "prefork.metrics.scoreboard", "prefork.pool_settings", "prefork.process",
    "prefork.serving_loop", "prefork.sockets.listener", "prefork.supervised", "prefork.workers.contexts",
    "prefork.workers.lanes", "prefork.workers.signals", "ctypes", "json", "logging", "mmap", "setproctitle", "signal",
)  # fmt: skip
# What cannot be done without brings some of it, in some versions.
NEEDED = """
import ctypes, json, logging, signal, socket, threading, typing
class Record(typing.NamedTuple):  # as a class: that brings more, since Python 3.15
    field: int
"""
NEEDED_BY_A_WORKER = f"""
import argparse, contextlib
{NEEDED}
contextlib.ExitStack().enter_context(contextlib.nullcontext())
"""
APP = """
import sys
import prefork

class Handler(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(" ".join(sys.modules).encode())
"""


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return {*subprocess.check_output(command, text=True, cwd=ROOT, timeout=30).split()}


def test_import_is_light() -> None:
    """A pool's classes bring nothing that only some programs, some commands or other processes use."""
    brought = loaded_by("from prefork import PreForkingTCPServer") - loaded_by(NEEDED)
    assert "prefork.workers.loop" in brought
    assert brought & (HEAVY | APART | {"prefork.cli"}) == set()


def test_no_annotation_is_compiled() -> None:
    """One in quotes is, where it is a field of a NamedTuple: the first costs a millisecond, and a quarter of a MB."""
    noting = "import typing; made = []; typing.ForwardRef.__init__ = lambda self, *given, **named: made.append(given)"
    command = [sys.executable, "-c", f"{noting}\nimport prefork; prefork.PreForkingTCPServer; print(made)"]
    assert subprocess.check_output(command, text=True, cwd=ROOT, timeout=30) == "[]\n"


def test_what_only_a_pool_needs_is_loaded_with_its_classes() -> None:
    """`import prefork`, and the plain classes, bring none of it; a pool's class brings all that its master needs."""
    plain = loaded_by("import prefork; prefork.ForkingTCPServer, prefork.ThreadingUDPServer, prefork.every")
    assert plain & OF_A_POOL == set()
    assert loaded_by("import prefork; prefork.PreForkingMixIn") >= OF_A_POOL


@pytest.mark.parametrize("theirs", ["prefork", "socketserver"])
def test_what_only_serving_needs_is_not_loaded_to_define_a_class(theirs: str) -> None:
    """Nor is it to ask a class or the module for something, be it over the standard library's servers."""
    defined = (
        f"import prefork, {theirs} as theirs\n"
        "class Forking(prefork.ForkingMixIn, theirs.TCPServer): max_children = 3\n"
        "class Threading(prefork.ThreadingMixIn, theirs.UDPServer): max_threads = 3\n"
        "class Handler(prefork.StreamRequestHandler): pass\n"
        "prefork.every(1, print), prefork.rehearsing(), Forking.active_children, Threading.metrics_address"
    )
    brought = loaded_by(defined) - loaded_by("import socketserver, typing")
    assert "prefork.mixins" in brought
    assert {name for name in brought if f"{name}.".startswith(tuple(f"{each}." for each in SERVING))} == set()


@pytest.mark.parametrize("kind", ["TCPServer", "UDPServer"])
@pytest.mark.parametrize("module", ["prefork", "socketserver"])
@pytest.mark.parametrize("mixin", [[], ["SupervisedMixIn"], ["ForkingMixIn"], ["ThreadingMixIn"]])
def test_a_server_that_is_made_has_loaded_what_it_needs(mixin: list[str], module: str, kind: str) -> None:
    """It serves where nothing can be imported any more, in whatever way it is called."""
    command = [sys.executable, "-m", "tests.process.programs.out_of_reach", module, kind, *mixin]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr) == ("b'there\\n' b'there\\n'\n", "")


@pytest.mark.parametrize("delay", range(0, 50, 10))
@pytest.mark.parametrize(
    "server_class",
    [
        ["TCPServer"],
        ["ForkingTCPServer"],
        ["ThreadingUDPServer"],
        ["PreForkingTCPServer"],
        ["PreForkingTCPServer", "serving"],
    ],
    ids=" ".join,
)
def test_a_process_that_is_forked_while_a_thread_makes_the_first_server(server_class: list[str], delay: int) -> None:
    """It can make one of its own, and soon: no lock of the import is held in it for ever, nor waited for in vain."""
    name, *how = server_class
    argv = [sys.executable, "-m", "tests.process.programs.forks_beside", name, str(delay), *how]
    subprocess.run(argv, timeout=30, check=True, cwd=ROOT)


def test_how_a_program_was_started_is_read_at_the_first_import() -> None:
    """Its directory, before it changes that, whenever it names a class of a pool."""
    names = "import os, prefork; os.chdir('/'); from prefork import PreForkingTCPServer as P"
    assert str(ROOT) in loaded_by(f"{names}; print(prefork.reload.start_context.START.directory)")


def test_every_public_name_is_there() -> None:
    """What is loaded later is listed as the rest is, and another name is none."""
    assert {*prefork.__all__} <= {*dir(prefork)}
    assert all(hasattr(prefork, name) for name in prefork.__all__)
    assert not hasattr(prefork, "PreForkingServer")


def test_a_worker_is_light(tmp_path: Path) -> None:
    """Nor has a worker of `prefork run` any of it in memory, but for what has read the command line."""
    (tmp_path / "app.py").write_text(APP)
    with running(["run", "app:Handler", "--bind", "127.0.0.1:0"], cwd=tmp_path) as run:
        there = {*ask(("127.0.0.1", run.port), b"").decode().split()}
    assert "prefork.cli.run" in there
    assert (there - loaded_by(NEEDED_BY_A_WORKER)) & (HEAVY | APART) == set()
