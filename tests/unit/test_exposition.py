"""The program's own collectors in a scrape: one that is bad costs its own family, and is said once."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from prefork.metrics.application import exposition
from prefork.metrics.application.exposition import application_families, encoded
from prefork.metrics.application.sums import Merged

ACCEPTS = ["text/plain", "application/openmetrics-text; version=1.0.0"]


def gauge(name: str, *labels: Any, value: Any = 1.0) -> Metric:
    family = GaugeMetricFamily(name, "Of the test.", labels=[f"label{n}" for n, _ in enumerate(labels)])
    family.add_metric(labels, value)
    return family


def raises() -> Iterable[Metric]:
    raise ValueError("broken")


def leaves() -> Iterable[Metric]:
    raise SystemExit(3)


BAD: dict[str, Callable[[], Iterable[Any]]] = {
    "raises": raises,
    "leaves": leaves,
    "no metric": lambda: ["a text"],
    "nothing": lambda: None,  # type: ignore[dict-item, return-value]
    "label of a wrong type": lambda: [gauge("bad", 7)],
    "label without a value": lambda: [gauge("bad", None)],
    "surrogate": lambda: [gauge("bad", "\ud800")],
    "no number": lambda: [gauge("bad", value="many")],
    "no name": lambda: [Metric("bad", None, "gauge"), gauge("bad", value=object())],  # type: ignore[arg-type]
}  # fmt: skip


class Collects(Collector):
    def __init__(self, collect: Callable[[], Iterable[Any]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return []


@contextmanager
def registered(*collects: Callable[[], Iterable[Any]]) -> Iterator[None]:
    collectors = [Collects(collect) for collect in collects]
    for collector in collectors:
        REGISTRY.register(collector)
    try:
        yield
    finally:
        for collector in collectors:
            REGISTRY.unregister(collector)


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_collector(
    bad: str, accept: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other family is served, before it and behind it, and the log says once which one is left out."""
    monkeypatch.setattr(exposition, "_failed", set())
    encoder, form = choose_encoder(accept)
    with registered(lambda: [gauge("first", "a")], BAD[bad], lambda: [gauge("last", "z")]):
        texts = {encoded([*application_families(Merged({}, 0, 0))], encoder, form).decode() for _ in range(2)}
    (text,) = texts
    assert 'first{label0="a"} 1.0' in text
    assert 'last{label0="z"} 1.0' in text
    assert "bad" not in text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("could not collect")
