"""Other people's programs: what is quick of it; `python -m tests.conformance.programs` (programs/__main__.py) runs all.

They are installed from the package index in an environment of their own. What cannot be installed is a failure.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.conformance.programs.catalogue import PROGRAMS, Program
from tests.conformance.programs.installed import ROOT, pins
from tests.conformance.programs.serving import run_served
from tests.conformance.programs.suites import run_suite

pytestmark = [pytest.mark.once, pytest.mark.programs]

SERVED = [pytest.param(each, id=each.name) for each in PROGRAMS]
SUITES = [pytest.param(each, id=each.name) for each in PROGRAMS if each.suite is not None and each.suite.quick]


@pytest.mark.parametrize("program", SERVED)
def test_served_from_a_pool(program: Program, tmp_path: Path) -> None:
    """A program's server under PreForkingMixIn answers a real client: beside a worker that is killed, by the next one
    after that, over a reload, and to the end when the service drains; each request is counted once."""
    assert all(map(shutil.which, program.debian))
    assert run_served(program, tmp_path) > 0


@pytest.mark.parametrize("program", SUITES)
def test_its_own_tests(program: Program, tmp_path: Path) -> None:
    """A program's own tests do over prefork what they do over the original, test by test."""
    verdict = run_suite(program, tmp_path)
    assert not verdict.wrong, "\n".join(verdict.wrong)


def test_the_catalogue_is_whole() -> None:
    """Each program is pinned, and has tests that run, or the reason why not."""
    assert {each.distribution for each in PROGRAMS} <= set(pins())
    assert [each.name for each in PROGRAMS if (each.suite is None) != bool(each.why_no_suite)] == []


def test_the_page_names_them() -> None:
    """FIT.md's table has each program, with the version that is tested, and no other."""
    table = (ROOT / "prefork" / "FIT.md").read_text().partition("## Programs known to work")[2]
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", table, re.MULTILINE))
    tested = {each.distribution: pins()[each.distribution].partition("==")[2] for each in PROGRAMS}
    assert {name.lower(): version for name, version in rows.items()} == tested
