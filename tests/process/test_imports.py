"""What comes along with `import prefork`, in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import prefork

ROOT = Path(prefork.__file__).parents[1]


def test_import_is_light() -> None:
    """`import prefork` brings neither prometheus_client, psutil, http.server, asyncio nor argparse."""
    heavy = ("prometheus_client", "psutil", "http.server", "asyncio", "argparse", "multiprocessing")
    code = f"import prefork, sys; print([m for m in {heavy!r} if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT, timeout=30)
    assert printed.strip() == "[]"
