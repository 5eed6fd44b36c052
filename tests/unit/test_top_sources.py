"""Metrics as a source of `prefork top`: what the three paths of an exporter say together."""

from typing import Any

import pytest

from prefork.errors import PreforkError
from prefork.top import scrape, sources
from prefork.top.http import Endpoint, Response, parse_url
from prefork.top.sources import HEALTHY, READY, MetricsSource

TEXT = "metrics"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """The status of each path; None: it does not answer."""
    answers: dict[str, int | None] = {"/metrics": 200, READY: 200, HEALTHY: 200}

    def get(place: Endpoint, until: float) -> Response:
        if (status := answers[place.path]) is None:
            raise PreforkError("it does not answer")
        return Response(status, "as it is", TEXT, 7.0)

    monkeypatch.setattr(sources, "get", get)
    monkeypatch.setattr(scrape, "status_of", lambda text, date: {"phase": "", "of": (text, date)})
    return answers


def look(url: str = "http://127.0.0.1:1/metrics") -> dict[str, Any]:
    found = MetricsSource(parse_url(url)).look()
    assert found.workers is None
    return {**found.status}


@pytest.mark.parametrize(
    ("ready", "healthy", "phase", "hangs"),
    [
        (200, 200, "ready", False), (503, 200, "not ready", False), (503, 503, "not ready", True),
        (200, 503, "ready", True), (None, None, "", False), (404, 404, "", False), (200, 404, "ready", False),
    ],
)  # fmt: skip
def test_what_is_shown(
    ready: int | None, healthy: int | None, phase: str, hangs: bool, answers: dict[str, int | None]
) -> None:
    """The figures are shown whatever the other two paths say, which may be another server's."""
    answers |= {READY: ready, HEALTHY: healthy}
    assert look() == {"phase": phase, "hangs": hangs, "of": (TEXT, 7.0)}


def test_a_path_of_somebody_elses_choice(answers: dict[str, int | None]) -> None:
    """Nothing is known beside it."""
    answers["/elsewhere"] = 200
    assert look("http://127.0.0.1:1/elsewhere") == {"phase": "", "hangs": False, "of": (TEXT, 7.0)}


def test_what_cannot_be_read(answers: dict[str, int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another status, and figures that are not ours, are said with the address; nothing can be commanded there."""
    answers["/metrics"] = 404
    with pytest.raises(PreforkError, match=r"could not read http://127.0.0.1:1/metrics: it answers 404 as it is"):
        look()
    answers["/metrics"] = 200

    def status_of(text: str, date: float) -> dict[str, Any]:
        raise scrape.NotOurs("no metric of prefork")

    monkeypatch.setattr(scrape, "status_of", status_of)
    with pytest.raises(PreforkError, match=r"could not read http://127.0.0.1:1/metrics: no metric of prefork"):
        look()
    with pytest.raises(PreforkError, match="could not replace a worker"):
        MetricsSource(parse_url("http://127.0.0.1:1/metrics")).replace(1, print)
