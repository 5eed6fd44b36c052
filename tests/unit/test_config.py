"""`prefork config`: what is in force and who set it, with nothing bound."""

import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork import rehearsing
from prefork.cli.launch import fields
from prefork.cli.main import main

APP = Path(__file__).parent / "programs" / "settings_app.py"
INSTANCE = """
import app, prefork
server = app.Base(("127.0.0.1", {port}), app.Handler)
server.graceful_timeout = 5
"""


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copy(APP, tmp_path / "app.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("app", "instance"):
        sys.modules.pop(name, None)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*argv: str) -> dict[str, Any]:
        assert main(["config", "--json", *argv]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        settings = json.loads(out)["settings"]
        assert isinstance(settings, dict)
        return settings

    return run


def came_from(settings: dict[str, Any], name: str) -> tuple[Any, str, str]:
    return settings[name]["value"], settings[name]["source"], settings[name]["from"]


def test_every_source(app: Path, printed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, variable, file, a class of the user's, its base, and nobody: each is said by name."""
    (app / "s.toml").write_text("[prefork]\nmax_memory = '1GiB'\nmax_lifetime = 60\n")
    monkeypatch.setenv("PREFORK_MAX_LIFETIME", "2m")
    monkeypatch.setenv("PREFORK_MAX_CHILDREN", "9")
    found = printed("app:Server", "--config", "s.toml", "--max-children", "4", "--metrics", "unix:/m.sock")
    assert came_from(found, "max_children") == (4, "option", "--max-children")
    assert came_from(found, "max_lifetime") == (120.0, "variable", "PREFORK_MAX_LIFETIME")
    assert came_from(found, "max_memory") == (1024**3, "file", "s.toml: max_memory")
    assert came_from(found, "request_timeout") == (30, "class", "class app.Server")
    assert came_from(found, "max_requests") == (1000, "class", "class app.Base")
    assert came_from(found, "boot_timeout") == (60.0, "default", "default")
    assert came_from(found, "metrics") == ("unix:/m.sock", "option", "--metrics")
    assert found["metrics"]["attribute"] == "metrics_address"
    assert not found["dual_stack"]["reloadable"]
    assert sys.modules["app"].TRIED
    assert not rehearsing()


def test_threads_only_where_there_are_threads(printed: Callable[..., dict[str, Any]]) -> None:
    """max_threads is in force only in a pool that has threads; a handler class gets them by the option."""
    assert "max_threads" not in printed("app:Handler")
    assert came_from(printed("app:Handler", "--max-threads", "3"), "max_threads") == (3, "option", "--max-threads")


def test_instance_and_factory(app: Path, printed: Callable[..., dict[str, Any]]) -> None:
    """What a program sets on an instance is found there, although its port is taken: nothing is bound."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (app / "instance.py").write_text(INSTANCE.format(port=port))
        found = printed("instance:server")
        assert came_from(found, "graceful_timeout") == (5, "instance", "the instance of Base")
        found = printed("app:factory", "--bind", f"127.0.0.1:{port}", "--max-requests", "7")
        assert came_from(found, "max_children") == (3, "instance", "the instance of Base")
        assert came_from(found, "max_requests") == (7, "option", "--max-requests")
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.accept()


def test_table_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a target the table has what a pool has by itself: a line for each setting that there is."""
    assert main(["config", "--max-memory", "512MiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {f.key for f in fields().values()} - {"target", "max_threads"}
    assert next(line.split() for line in lines if line.startswith("max_memory")) == [
        "max_memory",
        "512MiB",
        "--max-memory",
    ]


def test_mistake_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    """What `prefork run` would refuse is refused, with 2 and in one sentence."""
    assert main(["config", "app:Server", "--min-children", "99999"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("prefork: could not set min_children to 99999 (from --min-children): it must be at most")
