"""The pages: links lead somewhere, the reference is as the code is, nothing is said twice.

That their examples run is tested in tests/process/test_guides.py.
"""

import json
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

import prefork
from prefork.cli.main import SUBCOMMAND_TABLE as SUBCOMMANDS
from prefork.cli.pages import Parser
from prefork.commands import BY_VERB
from prefork.settings.fields import settings
from tests.support.tools import reference
from tests.support.tools.guides import FRONT, IDS, PAGES, ROOT, anchors, blocks, prose, table

LANGUAGES = {"sh", "console", "python", "toml", "ini", "json", "text"}


def test_the_reference_is_as_the_code_is() -> None:
    """prefork/REFERENCE.md is what `python -m tests.support.tools.reference` writes."""
    assert reference.REFERENCE.read_text() == reference.page(), "write it anew: python -m tests.support.tools.reference"


def test_the_reference_has_every_setting_once() -> None:
    """Each setting of a pool is a row of one table."""
    text = reference.setting_tables()
    assert [name for name in settings(prefork.PreForkingTCPServer) if text.count(f"| `{name}`") != 1] == []


def test_the_front_page_has_the_two_commands() -> None:
    """README.md has one line that runs a service and one that runs the tests."""
    lines = [line for line in FRONT.read_text().splitlines() if line.startswith("python3 -m venv .venv && ")]
    assert len(lines) == 2
    assert "prefork run prefork.examples:Upper" in lines[0]
    assert lines[1].endswith("/pytest")


def _supported() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [each.split()[-1] for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)]


def test_the_front_page_names_the_pythons() -> None:
    """The oldest and the newest CPython of the front page are those of the package's classifiers."""
    line = next(line for line in FRONT.read_text().splitlines() if line.startswith("It needs Linux"))
    named = re.findall(r"3\.\d+", line)
    assert (named[0], named[-1]) == (_supported()[0], _supported()[-1])


def test_the_same_pythons_everywhere() -> None:
    """CI tests every CPython of the package's classifiers, and the image is made with one of them."""
    tested = re.search(r"^SUPPORTED=\((.*)\)$", (ROOT / ".ci" / "jobs").read_text(), re.MULTILINE)
    assert tested is not None
    assert tested[1].split() == _supported()
    image = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
    made_with = re.findall(r"^FROM python:(\S+?)-slim-(\w+)", image, re.MULTILINE)
    assert len(made_with) == 2  # it builds, and it runs
    assert len(set(made_with)) == 1
    assert made_with[0][0] in _supported()


def test_the_front_page_is_short() -> None:
    """Who comes for the first time reads 200 lines at most."""
    assert len(FRONT.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of every page, the test behind each promise among them, is to a file, or a heading, that is there."""
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page)):
        there = page.parent / name if name else page
        assert there.exists(), name
        assert not anchor or anchor in anchors(there), f"{name}#{anchor}"


def test_every_guide_is_linked() -> None:
    """From the front page every other page is reached by links."""
    reached, ahead = set(), [FRONT]
    while ahead:
        here = ahead.pop()
        reached.add(here)
        for name in re.findall(r"\]\((?!https?:)([^)#]+\.md)[^)]*\)", prose(here)):
            there = (here.parent / name).resolve()
            if there not in reached:
                ahead.append(there)
    assert set(PAGES) - reached == set()


def test_every_promise_names_its_test() -> None:
    """Each line of the two tables of promises ends with a link to a test; the front page has five."""
    front, others = table(FRONT, "What it promises"), table(ROOT / "tests" / "README.md", "Promises")
    assert len(front) == 5
    assert len(others) >= 10
    assert [row for row in (*front, *others) if not re.search(r"\| \[\w+\]\([\w/]+\.py\)[^|]*\|$", row)] == []


def test_nothing_is_said_twice() -> None:
    """No sentence of some length, and no row of a table, stands on two pages or twice on one."""
    said = defaultdict(list)
    for page, name in zip(PAGES, IDS, strict=True):
        for paragraph in re.split(r"\n\n|\n(?=[|-])", prose(page)):
            for sentence in re.split(r"(?<=[.:;?]) ", " ".join(paragraph.split())):
                if len(sentence) > 60:
                    said[sentence].append(name)
    assert {sentence: pages for sentence, pages in said.items() if len(pages) > 1} == {}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_examples_have_a_language(page: Path) -> None:
    """Every example is of a kind that a test reads, and what is JSON or TOML is."""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"line {block.line}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


OURS = [page for page in PAGES if page.parent.name not in ("systemd", "container", "kubernetes", "prometheus")]
OURS.remove(ROOT / "deploy" / "moving.md")  # which quotes other programs; test_moving.py reads it


@pytest.mark.parametrize("page", OURS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    """Every command, verb and option of prefork that a page quotes is one."""
    options = {word for row in SUBCOMMANDS for word in Parser(row.name, row.help, row.command())._option_string_actions}
    for line in re.findall(r"`([^`]+)`", prose(page)):
        words = [] if line.startswith("import ") else line.split()
        if "prefork" in words:
            command, verb = (*words[words.index("prefork") + 1 :], "", "")[:2]
            assert command in {row.name for row in SUBCOMMANDS} | {"", "--version", "--help"}, line
            assert command != "ctl" or verb in {*BY_VERB, ""}, line
        if "prefork" in words or line.startswith("--"):
            assert {word for word in words if word.startswith("--")} <= options | {"--version"}, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_are_there(page: Path) -> None:
    """Every file of ours that a page names is there, by its path from the top."""
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())  # links have a test of their own
    named = re.findall(r"(?<![\w./-])(?:prefork|workers|metrics|tests|deploy)/[\w./@-]*[\w/]", text)
    assert [name for name in named if not (ROOT / name).exists() and not name.startswith("prefork/upper")] == []


def test_every_package_is_on_the_map() -> None:
    """The contributors' map has a row for each package, and the workers' page one for each module."""
    packages = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("prefork/*/__init__.py")}
    packages -= {"prefork/workers", "prefork/metrics"}
    on_map = {row.split("`")[1].rstrip("/") for row in table(ROOT / "tests" / "README.md", "The map")}
    assert on_map == packages | {"prefork", "workers", "metrics"}
    modules = {path.name for path in (ROOT / "workers").glob("*.py")} - {"__init__.py"}
    assert {row.split("`")[-2] for row in table(ROOT / "workers" / "README.md", "What stands where")} == modules


def test_variables_of_the_tests_exist() -> None:
    """Every variable by which the contributors' page sets a test is read by one."""
    named = set(re.findall(r"TEST_PREFORK_\w+", (ROOT / "tests" / "README.md").read_text()))
    read = set(re.findall(r"TEST_PREFORK_\w+", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    assert named <= read


def test_every_setting_is_documented() -> None:
    """Every setting has a help sentence without a full stop that starts small, as the tables print it."""
    for field in settings(prefork.PreForkingMixIn).values():
        assert field.setting.help[:1].islower(), field.name
        assert not field.setting.help.endswith("."), field.name
