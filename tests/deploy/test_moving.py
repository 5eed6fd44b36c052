"""deploy/moving.md: what it says that prefork, gunicorn and the standard library have, they have."""

import http.server
import re
import socketserver
import subprocess
from collections.abc import Iterator
from signal import Signals

import pytest

import prefork
from prefork.commands import BY_SIGNAL, BY_VERB
from prefork.pool import PreForkingMixIn
from prefork.settings.fields import settings
from tests.support.programs.command import MODULE
from tests.support.programs.service import HUNG, ROOT

PAGE = (ROOT / "deploy" / "moving.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))


class Pool(PreForkingMixIn, prefork.ThreadingTCPServer):
    """Everything a program can set or override."""


def cells(section: str, column: int) -> Iterator[str]:
    """The cells of one column of the section's tables, without their heads."""
    for table in re.findall(r"^\|.*\|$(?:\n\|.*\|$)+", SECTIONS[section], re.MULTILINE):
        for row in table.splitlines()[2:]:
            yield row.strip("|").split("|")[column].strip()


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options() -> set[str]:
    text = subprocess.run([*MODULE, "run", "--help"], capture_output=True, text=True, timeout=HUNG, cwd=ROOT).stdout
    return set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))


def exists(name: str) -> bool:
    """A setting, a hook or a base class; a command line."""
    words = name.split()
    if words[:2] == ["prefork", "ctl"]:
        return words[2] in BY_VERB
    if words[0] == "prefork":
        return words[1:] in (["run"], ["top"], ["check"], ["config"])
    if name in ("handle()", "handle_one_request()"):
        return hasattr(http.server.BaseHTTPRequestHandler, name.removesuffix("()"))
    names = name.removesuffix("()").split(", ")
    return all(part in settings(Pool) or hasattr(Pool, part) or hasattr(prefork, part) for part in names)


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_ours_exists(section: str) -> None:
    """Every name in a prefork column is a setting, option, hook, class, signal or command."""
    column = list(cells(section, 1))
    assert column
    names = [name for cell in column for name in quoted(cell)]
    assert [name for name in names if name.startswith("--") and name not in options()] == []
    assert [name for name in names if not name.startswith("--") and not exists(name)] == []
    signals = {word for cell in column for word in re.findall(r"\b[A-Z][A-Z0-9]{2,4}\b", re.sub("`.*?`", "", cell))}
    assert signals <= {Signals(signum).name.removeprefix("SIG") for signum in BY_SIGNAL}
    text = re.sub(r"^\|.*$", "", SECTIONS[section], flags=re.MULTILINE)
    assert [name for name in quoted(text) if name.endswith("()") and not exists(name)] == []


def test_what_is_gunicorns_exists() -> None:
    """Every name in its columns is a setting of gunicorn's."""
    from gunicorn.config import KNOWN_SETTINGS  # every other Python reads this file, and has no gunicorn

    known = {setting.name for setting in KNOWN_SETTINGS}
    for section in ("From gunicorn's sync workers", "From gunicorn's gthread workers"):
        names = {name for cell in cells(section, 0) for name in quoted(cell)}
        assert names
        assert names - known == set()


def test_what_is_the_standard_librarys_exists() -> None:
    """The attributes and hooks of socketserver."""
    names = [part for cell in cells("From socketserver", 0) for name in quoted(cell) for part in name.split(", ")]
    own = vars(socketserver) | {name: 1 for cls in socketserver.__all__ for name in dir(getattr(socketserver, cls))}
    plain = {re.sub(r"\(.*\)", "", name) for name in names if "." not in name}
    assert plain - set(own) - {"wsgiref"} == set()


def test_defaults_are_told_as_they_are() -> None:
    """A default in a prefork column is the setting's."""
    fields = settings(Pool)
    for section in SECTIONS:
        for cell in cells(section, 1):
            for name, default in re.findall(r"`(\w+)` \(([^,)]+)", cell):
                told = fields[name].default_text if name in fields else {True: "on", False: "off"}[getattr(Pool, name)]
                assert default == told.partition(",")[0], cell


def test_the_recipes_and_folders_are_there() -> None:
    """What the page sends one to."""
    paths = re.findall(r"`((?:recipes|systemd)/[\w.]*)`", PAGE)
    assert paths
    assert [path for path in paths if not (ROOT / "deploy" / path).exists()] == []
