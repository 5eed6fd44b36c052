"""What is built and installed: wheel, sdist, editable install, bare checkout; and a service run from the wheel."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from prefork import __version__
from tests.support.clients.connections import ask
from tests.support.programs.command import ROOT, running

pytestmark = pytest.mark.once

BUILD_HUNG = 300.0  # pip fetches the build system and the dependencies
IMPORTS = "import prefork, prefork.cli, prefork.workers.loop, prefork.metrics.scoreboard; print(prefork.__file__)"


def run(*argv: object, cwd: Path) -> str:
    """Run a program away from the checkout and return what it printed; its errors are shown when it fails."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(arg) for arg in argv], cwd=cwd, env=environ, capture_output=True, text=True, timeout=BUILD_HUNG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(wheel: Path) -> dict[str, bytes]:
    """The content of a wheel but for its RECORD, whose order may differ."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to build in, symlinks and all, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout") / "prefork"
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests"),
    )
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """A folder with the sdist, the wheel made from it, and in `direct/` the wheel made from the checkout."""
    dist = checkout.parent / "dist"
    run(sys.executable, "-m", "build", "--outdir", dist, checkout, cwd=checkout.parent)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", dist / "direct", checkout, cwd=checkout.parent)
    return dist


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next((built / "direct").glob("*.whl"))


def environment(folder: Path) -> Path:
    """A fresh virtual environment; its bin directory."""
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin"


def test_wheel_holds_one_namespace(wheel: Path) -> None:
    """The wheel has prefork with workers and metrics inside, every module and py.typed, and no other top level."""
    files = files_of(wheel)
    metadata = f"prefork-{__version__}.dist-info"
    assert {name.split("/")[0] for name in files} == {"prefork", metadata}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for package, folder in (("prefork", "prefork"), ("prefork/workers", "workers"), ("prefork/metrics", "metrics"))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in files if name.startswith("prefork/")} == {*expected, "prefork/py.typed"}
    assert any(name.startswith(f"{metadata}/") and name.endswith("LICENSE") for name in files)


def test_sdist_builds_the_same_wheel(built: Path, wheel: Path) -> None:
    """The wheel built from the sdist has the same files as the one built from the checkout."""
    assert files_of(next(built.glob("*.whl"))) == files_of(wheel)
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        assert not [member.name for member in archive if member.issym()]


def test_twine_would_upload_it(built: Path) -> None:
    """`twine check --strict` finds nothing: metadata and README are what an index takes."""
    run(sys.executable, "-m", "twine", "check", "--strict", *built.glob("*.whl"), *built.glob("*.tar.gz"), cwd=built)


def test_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment with nothing but the wheel and its dependencies, `prefork run` serves and ends with 0."""
    folder = environment(tmp_path / "venv")
    run(folder / "pip", "install", "-q", wheel, cwd=tmp_path)
    assert str(tmp_path / "venv") in run(folder / "python", "-c", IMPORTS, cwd=tmp_path)
    assert run(folder / "prefork", "--version", cwd=tmp_path).startswith(f"prefork {__version__} (")
    argv = ["run", "prefork.examples:Upper", "--bind", "127.0.0.1:0", "--max-children", "2"]
    for program in ([str(folder / "prefork")], [str(folder / "python"), "-m", "prefork"]):
        with running(argv, cwd=tmp_path, program=program) as service:  # which checks for status 0 after TERM
            assert ask(("127.0.0.1", service.port), b"hello\nworld\n") == b"HELLO\nWORLD\n"


def test_editable_install_works_elsewhere(checkout: Path, tmp_path: Path) -> None:
    """An editable install imports all three packages from the checkout, changes included, in another directory."""
    folder = environment(tmp_path / "venv")
    run(folder / "pip", "install", "-q", "-e", checkout, cwd=tmp_path)
    assert str(checkout) in run(folder / "python", "-c", IMPORTS, cwd=tmp_path)
    (checkout / "workers" / "added_later.py").write_text("ANSWER = 42\n")
    try:
        code = "from prefork.workers.added_later import ANSWER; print(ANSWER)"
        printed = run(folder / "python", "-c", code, cwd=tmp_path)
    finally:
        (checkout / "workers" / "added_later.py").unlink()
    assert printed == "42\n"
    assert run(folder / "prefork", "--version", cwd=tmp_path).startswith(f"prefork {__version__} (")


def test_bare_checkout_runs(checkout: Path) -> None:
    """Without any installation, `python -m prefork` in the checkout runs what is there."""
    assert run(sys.executable, "-m", "prefork", "--version", cwd=checkout).startswith(f"prefork {__version__} (")
    assert str(checkout) in run(sys.executable, "-c", IMPORTS, cwd=checkout)
