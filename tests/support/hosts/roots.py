"""Debian releases as folders, for tests of what another system than this machine's does.

Made by .ci/root, as root; used read-only. A build takes 20 s of CPU and 150 MB: TEST_PREFORK_ROOTS=FOLDER keeps them
there for the next run.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

from tests.support.hosts.namespaces import ROOT

TOOL = ROOT / ".ci" / "root"
BUILD_S = 900.0  # seconds; the archive may be far away, and the machine busy


@contextlib.contextmanager
def keeping() -> Iterator[Path]:
    """The folder in which roots are: the one that TEST_PREFORK_ROOTS names, or one that is gone afterwards."""
    if kept := os.environ.get("TEST_PREFORK_ROOTS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    with TemporaryDirectory(prefix="roots-") as folder:
        yield Path(folder)


def debian(suite: str, packages: tuple[str, ...], folder: Path) -> Path:
    """The root of this release with these packages; made if it is not in the folder yet."""
    made_of = " ".join(packages).encode() + TOOL.read_bytes()
    root = folder / f"{suite}-{crc32(made_of):08x}"
    if not root.exists():
        with TemporaryDirectory(dir=folder) as making:
            done = subprocess.run(
                [TOOL, "build", suite, f"{making}/root", *packages], capture_output=True, text=True, timeout=BUILD_S,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"could not make a root of Debian {suite}: {done.stderr[-2000:]}"
            with contextlib.suppress(OSError):  # another run was first
                os.rename(f"{making}/root", root)
    return root
