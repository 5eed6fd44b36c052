"""deploy/pictures: what the pages show is what the program and the dashboard are now."""

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.hosts.prometheus import needs_prometheus
from tests.support.tools.guides import PAGES, prose
from tests.support.tools.panels import DASHBOARD
from tests.support.tools.pictures import FOLDER, make

AGAIN = "make them again: python -m tests.support.tools.pictures"


def texts(path: Path, *classes: str) -> list[str]:
    """What is written in the picture, in its order."""
    found = ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    chosen = (text for text in found if not classes or text.get("class") in classes)
    return ["".join(text.itertext()).replace("\xa0", " ").strip() for text in chosen]


def columns(path: Path) -> list[str]:
    """Of the table of workers."""
    return next(line.split() for line in texts(path) if line.startswith("slot "))


def titles(path: Path) -> list[str]:
    return texts(path, "title", "row")


def test_the_dashboard_is_the_one_that_is_shown() -> None:
    """Every panel stands in the picture, by its title and in its order."""
    assert titles(FOLDER / "dashboard.svg") == [panel["title"] for panel in DASHBOARD["panels"]], AGAIN


def test_pages_show_them() -> None:
    """Each picture is on one page, and needs nothing of another host."""
    text = "".join(prose(page) for page in PAGES)
    for path in FOLDER.glob("*"):
        assert text.count(f"deploy/pictures/{path.name})") == 1
        assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")


@needs_prometheus
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_they_can_be_made_again(tmp_path: Path) -> None:
    """A short real run draws both; the columns of prefork top are those of the picture that is shown."""
    make(4.0, tmp_path)
    assert columns(tmp_path / "top.svg") == columns(FOLDER / "top.svg"), AGAIN
    assert titles(tmp_path / "dashboard.svg") == titles(FOLDER / "dashboard.svg")
    shown = " ".join(texts(tmp_path / "dashboard.svg"))
    assert "busy" in shown
    shares = [float(text[:-1]) for text in texts(tmp_path / "dashboard.svg", "faint end") if text.endswith("%")]
    assert max(shares) == 100
    assert texts(tmp_path / "dashboard.svg").count("No data") <= 1
