"""deploy/systemd: the units to systemd's own tools, and their command lines run for real."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prefork.cli.main import main

HERE = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("prefork@.service", "prefork@.socket")

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def run(*argv: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The two units as the instance `upper`, with a `prefork` that can be run."""
    executable = shutil.which("true") or "/bin/true"
    for name in UNITS:
        text = (HERE / name).read_text().replace("/opt/prefork/bin/prefork", executable)
        (tmp_path / name.replace("@", "@upper")).write_text(text)
    return tmp_path


def exposure(folder: Path, unit: str) -> float:
    """systemd's own figure: 0 is safe, 10 is not."""
    found = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", f"./{unit}", cwd=folder)
    assert found.returncode == 0, found.stdout[-2000:]
    figures = re.search(r"Overall exposure level for \S+: ([0-9.]+)", found.stdout)
    assert figures is not None, found.stdout
    return float(figures[1])


def test_verify_has_nothing_to_say(units: Path) -> None:
    """`systemd-analyze verify` is silent."""
    found = run("systemd-analyze", "verify", "./prefork@upper.service", "./prefork@upper.socket", cwd=units)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_service_is_hardened(units: Path) -> None:
    """The exposure is at most 1.6, also with a privileged port of its own."""
    plain = exposure(units, "prefork@upper.service")
    unit = units / "prefork@upper.service"
    dropin = (HERE / "privileged-port.conf").read_text().replace("/opt/prefork/bin/prefork", "/bin/true")
    unit.write_text(unit.read_text() + "\n" + dropin)
    privileged = exposure(units, "prefork@upper.service")
    print(f"figure: exposure: {plain}, with a port of its own {privileged} (bound: 1.6)")  # noqa: T201
    assert plain <= 1.6
    assert privileged <= 1.6


def test_sysusers_and_tmpfiles_are_understood(tmp_path: Path) -> None:
    """systemd-sysusers makes the user, systemd-tmpfiles the folders, in a root of their own."""
    (tmp_path / "etc").mkdir()
    for tool, name in (("systemd-sysusers", "prefork.sysusers.conf"), ("systemd-tmpfiles", "prefork.tmpfiles.conf")):
        create = ["--create"] if tool == "systemd-tmpfiles" else []
        found = run(tool, f"--root={tmp_path}", *create, str(HERE / name), cwd=tmp_path)
        assert found.returncode == 0, found.stderr
    assert "prefork:" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "etc/prefork").is_dir()


@pytest.mark.parametrize("name", ["prefork@.service", "privileged-port.conf"])
def test_every_command_line_is_one_of_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What ExecStart and ExecReload say is understood by the command: every option and verb exists."""
    lines = re.findall(r"^Exec\w+=/opt/prefork/bin/prefork (.*)$", (HERE / name).read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        words = line.split()
        help_page = [words[0], "--help"]
        with pytest.raises(SystemExit) as left:
            main(help_page)
        assert left.value.code == 0
        page = capsys.readouterr().out
        for word in words[1:]:
            if word.startswith("--") or word == "reload":
                assert word in page, f"{word} of {line}"
