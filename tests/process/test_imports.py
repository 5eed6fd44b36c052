"""What is in memory that nobody uses: after `import prefork`, and in a worker. Each in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import prefork
from tests.support.clients.connections import ask
from tests.support.programs.command import running

ROOT = Path(prefork.__file__).parents[1]
# Of other people. A program may import any of them; we do not.
HEAVY = {
    "asyncio", "bz2", "concurrent.futures", "dataclasses", "dis", "email", "html", "http", "inspect", "ipaddress",
    "logging.handlers", "lzma", "multiprocessing", "pathlib", "platform", "prometheus_client", "psutil", "queue",
    "random", "shutil", "ssl", "subprocess", "tempfile", "tomllib", "urllib", "uuid", "xml",
}  # fmt: skip
if sys.version_info < (3, 14):  # from there on `typing` needs it for a NamedTuple
    HEAVY.add("ast")
# Of ours: each is for one command, or for one process that is no worker, or for a setting that is off.
APART = {
    "prefork.cli.check", "prefork.cli.config", "prefork.cli.ctl", "prefork.cli.findings", "prefork.cli.single",
    "prefork.cli.top", "prefork.control.client", "prefork.control.render", "prefork.examples",
    "prefork.exporter.server", "prefork.fixtures", "prefork.metrics.application.exposition",
    "prefork.metrics.collector", "prefork.reload.degraded", "prefork.reload.on_change", "prefork.testing",
    "prefork.top",
}  # fmt: skip
OF_A_COMMAND = {"argparse", "gettext", "prefork.cli"}
APP = """
import sys
import prefork

class Handler(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(" ".join(sys.modules).encode())
"""


def test_import_is_light() -> None:
    """`import prefork` brings nothing that only some programs, some commands or other processes use."""
    code = "import sys; before = {*sys.modules}; import prefork; print(*({*sys.modules} - before))"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT, timeout=30)
    assert {*printed.split()} & (HEAVY | APART | OF_A_COMMAND) == set()


def test_a_worker_is_light(tmp_path: Path) -> None:
    """Nor has a worker of `prefork run` any of it in memory, but for what has read the command line."""
    (tmp_path / "app.py").write_text(APP)
    with running(["run", "app:Handler", "--bind", "127.0.0.1:0"], cwd=tmp_path) as run:
        loaded = {*ask(("127.0.0.1", run.port), b"").decode().split()}
    there = subprocess.check_output([sys.executable, "-c", "import sys; print(*sys.modules)"], text=True, timeout=30)
    assert "prefork.cli.run" in loaded
    assert (loaded - {*there.split()}) & (HEAVY | APART) == set()
