"""The words of other servers: each name is told, by whatever route it comes, and leads to what is there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork.cli import launch
from prefork.cli.launch import add_arguments, fields
from prefork.cli.pages import Parser, Subcommand
from prefork.errors import ConfigError
from prefork.settings.effects import POOL_HOOKS, misspelt
from prefork.settings.fields import settings
from prefork.settings.other_servers import THEIR_HOOKS, THEIR_SETTINGS, WITHOUT_LIKE, called_here
from prefork.settings.sources import gather
from prefork.testing import running

BY_KEY = {field.key: field for field in fields().values()}
KNOWN = {*BY_KEY, "config"}
FROM_A_SERVICE = {"port", "reuse_port"}  # as variables, which Kubernetes may set: they are left alone
PAGE = Path(prefork.__file__).parents[1] / "deploy" / "moving.md"


@pytest.mark.parametrize("theirs", THEIR_SETTINGS)
def test_each_leads_to_what_is_there(theirs: str) -> None:
    """The name of another server is none of ours, and what it is called here is a setting."""
    assert theirs not in KNOWN | set(WITHOUT_LIKE)
    assert THEIR_SETTINGS[theirs] in KNOWN


@pytest.mark.parametrize("theirs", WITHOUT_LIKE)
def test_what_has_nothing_like_it(theirs: str) -> None:
    """It is none of ours, and the settings that its sentence names are there."""
    assert theirs not in KNOWN
    assert set(re.findall(r"\b[a-z]+_[a-z_]+\b", WITHOUT_LIKE[theirs])) <= {*KNOWN, "create_ssl_context"}
    assert {f"{option}".replace("-", "_") for option in re.findall(r"--([a-z-]+)", WITHOUT_LIKE[theirs])} <= KNOWN


@pytest.mark.parametrize("theirs", THEIR_HOOKS)
def test_each_hook_leads_to_what_is_there(theirs: str) -> None:
    """A method that another server calls is told with the hook that it is here."""
    assert THEIR_HOOKS[theirs] in POOL_HOOKS
    cls: Any = type("Server", (prefork.PreForkingTCPServer,), {theirs: lambda self: None})
    assert [*misspelt(cls.__new__(cls), settings(cls))] == [
        (theirs, f"it is none that prefork knows; here it is {THEIR_HOOKS[theirs]}")
    ]


def option(name: str) -> None:
    dash = "-" if len(name) == 1 else "--"
    command = Subcommand("", "", add_arguments, lambda args: 0)
    Parser("run", "", command).parse(["app:Server", f"{dash}{name.replace('_', '-')}", "4"])


def variable(name: str) -> None:
    gather(fields(), {}, {f"PREFORK_{name.upper()}": "4"}, None)


def key(name: str) -> None:
    Path("s.toml").write_text(f"[prefork]\n{name} = 4\n")
    gather(fields(), {}, {}, "s.toml")


def also(name: str) -> None:
    Path("s.toml").write_text(f"[prefork]\n[[prefork.also]]\nbind = ':1'\n{name} = 4\n")
    launch.read(Parser("run", "", Subcommand("", "", add_arguments, lambda args: 0)).parse(["--config", "s.toml"]))


@pytest.mark.parametrize("route", [option, variable, key, also])
def test_every_route_tells_each(route: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option, a variable and a key of the file are told in the words of that route."""
    monkeypatch.chdir(tmp_path)
    for theirs, ours in THEIR_SETTINGS.items():
        if route is option or (ours != "config" and theirs not in FROM_A_SERVICE):
            said = "--" + ours.replace("_", "-") if route is option else ours
            said = f"PREFORK_{ours.upper()}" if route is variable else said
            with pytest.raises(ConfigError, match=f"; here it is {said}$"):
                route(theirs)
    for theirs, why in WITHOUT_LIKE.items():
        if theirs in FROM_A_SERVICE and route is variable:
            continue
        with pytest.raises(ConfigError, match=f"; nothing is like it: {re.escape(why)}$"):
            route(theirs)


def test_in_a_test_of_the_programs() -> None:
    """prefork.testing tells it, too."""
    with pytest.raises(ConfigError, match=r"no such setting; here it is max_children$"):
        running(prefork.PreForkingTCPServer, prefork.StreamRequestHandler, workers=2).__enter__()


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("workers", 4, "max_children"), ("processes", 4, "max_children"), ("threads", 2, "max_threads"),
        ("backlog", 64, "request_queue_size"), ("max_servers", 50, "max_children"), ("harakiri", 30, "request_timeout"),
        ("statsd_host", ("127.0.0.1", 9465), "metrics_address"), ("certfile", "x.pem", "tls_certificate"),
    ],
)  # fmt: skip
def test_an_attribute(name: str, value: object, ours: str) -> None:
    """An attribute of a server's class is told, unless it is the program's own: it cannot be a value, or is read."""
    cls: Any = type("Server", (Pool,), {name: value})
    assert [*misspelt(cls.__new__(cls), settings(cls))] == [(name, f"it is none that prefork knows; here it is {ours}")]
    own: Any = type("Server", (Pool,), {name: [value]})
    assert [*misspelt(own.__new__(own), settings(own))] == []
    names: dict[str, Any] = {name: value}
    exec(f"def verify_request(self, request, client_address): return self.{name}", names)
    reads: Any = type("Server", (Pool,), {name: value, "verify_request": names["verify_request"]})
    assert [*misspelt(reads.__new__(reads), settings(reads))] == []


class Pool(prefork.PreForkingMixIn, prefork.ThreadingTCPServer):
    """A pool with every setting."""


def test_names_with_a_meaning_of_their_own() -> None:
    """What the standard library's classes have, and short words, are nobody's mistake."""
    cls: Any = type("Server", (Pool,), {"timeout": 5, "port": 80, "uid": "www", "listen": None})
    assert [*misspelt(cls.__new__(cls), settings(cls))] == []


def test_the_page_says_the_same() -> None:
    """What deploy/moving.md calls a setting of gunicorn's and Net::Server's is called so here."""
    told = {}
    for theirs, ours in re.findall(r"^\| (.*?) \| (`.*?) \|", PAGE.read_text(), re.MULTILINE):
        names, here = (re.findall(r"`([a-z_-]+)`", cell) for cell in (theirs, ours))
        for name, each in zip(names, here * len(names), strict=False):
            told[name] = each.lstrip("-").replace("-", "_").removesuffix("_address")
    both = THEIR_SETTINGS.keys() & told
    assert len(both) > 20
    assert {name: told[name] for name in both} == {name: THEIR_SETTINGS[name] for name in both}


def test_no_other_name_is_told() -> None:
    """A name of nobody's is told with the nearest known one, or with nothing."""
    assert called_here("--max-childs", ["--max-children"]) == "; did you mean --max-children?"
    assert called_here("colour", KNOWN) == ""
    assert called_here("--workers", ["--timeout"]) == ""  # of a command that serves nothing
