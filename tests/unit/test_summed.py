"""The text of summed metrics: what is kept of it is never seen, but by how fast it comes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder

from prefork.metrics.application import summed
from prefork.metrics.application.exposition import application_families, encoded
from prefork.metrics.application.series import Series, encode, family_of, series_of
from prefork.metrics.application.summed import Shapes
from prefork.metrics.application.sums import Merged

ACCEPTS = [
    "", "text/plain; version=1.0.0; escaping=allow-utf-8", "application/openmetrics-text; version=1.0.0",
    "application/openmetrics-text; version=1.0.0; escaping=dots",
]  # fmt: skip
ODD = ["", "a", "%s", '"\\\n', "\u2028\x85\r", "# HELP", "1.0 "]
NUMBERS = [0.0, -0.0, 0.1, 1e-7, 999999.9999999999, 1e6, 123456789.5, 1e17, 2.0**62, -1.5, float("inf"), float("nan")]

labels = st.sampled_from(ODD)
numbers = st.sampled_from(NUMBERS) | st.floats(0, 1e9)


def series(kind: str, name: str, help: str, suffix: str, *values: str) -> Series:
    names = ("l", "m")[: len(values) - (suffix == "_bucket")]
    family = family_of(encode((kind, "sum" if kind == "gauge" else "", name, help, *names)))
    return series_of(family, encode((suffix, *values)))


ROWS = [
    st.builds(lambda a: series("counter", "c", "100 %s \\ \n", "_total", a), labels),
    st.builds(lambda a, b: series("gauge", "g_created", "", "", a, b), labels, labels),
    st.builds(lambda a, le: series("histogram", "h", "#", "_bucket", a, le), labels, st.sampled_from(["0.5", "1.0"])),
    st.builds(lambda a: series("histogram", "h", "#", "_sum", a), labels),
    st.builds(lambda a, suffix: series("summary", "s", "s", suffix, a), labels, st.sampled_from(["_count", "_sum"])),
]

scrapes = st.lists(st.dictionaries(st.one_of(ROWS), numbers, max_size=12), min_size=1, max_size=3)


def text(values: dict[Series, float], accept: str, shapes: Shapes) -> str:
    encoder, form = choose_encoder(accept)
    return encoded(application_families(Merged(values, 0, 0), shapes), encoder, form).decode()


@given(scrapes, st.lists(st.sampled_from(ACCEPTS), min_size=1, max_size=4), st.data())
def test_kept_texts(found: list[dict[Series, float]], accepts: list[str], data: st.DataObject) -> None:
    """Whatever was scraped before, in whatever form: a text is that of a first scrape."""
    shapes = Shapes()
    for values in found:
        for accept in accepts:
            again = {each: data.draw(numbers) for each in values}
            assert text(again, accept, shapes) == text(again, accept, Shapes())


def test_histograms() -> None:
    """Each has cumulative buckets, a count, and a sum unless it may count negative values, by which that would fall."""
    values = {series("histogram", "h", "", "_bucket", low, le): 1.0 for low in ("0.0", "-1.0") for le in (low, "+Inf")}
    values |= {series("histogram", "h", "", "_sum", low): 1.5 for low in ("0.0", "-1.0")}
    assert text(values, "", Shapes()).splitlines()[2:] == [
        'h_bucket{l="-1.0",le="-1.0"} 1.0', 'h_bucket{l="-1.0",le="+Inf"} 2.0', 'h_count{l="-1.0"} 2.0',
        'h_bucket{l="0.0",le="0.0"} 1.0', 'h_bucket{l="0.0",le="+Inf"} 2.0', 'h_count{l="0.0"} 2.0',
        'h_sum{l="0.0"} 1.5',
    ]  # fmt: skip


@pytest.mark.parametrize("accept", ACCEPTS)
def test_encoders_texts(accept: str) -> None:
    """The first text and those after it are what the encoder makes of all families at once."""
    values = {series("counter", "c", "h", "_total", odd): number for odd, number in zip(ODD, NUMBERS, strict=False)}
    values |= {series("histogram", "h", "h", "_bucket", "a", le): 2.0 for le in ("+Inf", "1.0")}
    values |= {series("histogram", "h", "h", "_sum", "a"): 1.5}
    shapes = Shapes()
    families = list(application_families(Merged(values, 0, 0), shapes))
    encoder, form = choose_encoder(accept)
    whole = encoder(summed.Registry(*families))
    assert [encoded(families, encoder, form) for _ in range(3)] == [whole] * 3
    assert b'_count{l="a"} 4.0' in whole


def test_the_encoder_is_asked_once() -> None:
    """The encoder makes the first text of a form; the others take it from there until a series comes."""
    asked: list[Any] = []

    def encoder(registry: Any) -> bytes:
        asked.extend(registry.collect())
        return choose_encoder("")[0](registry)

    shapes = Shapes()
    values = {series("gauge", "g", "", "", label): 1.0 for label in "ab"}
    for _ in range(3):
        encoded(application_families(Merged(values, 0, 0), shapes), encoder, "text")
    assert len(asked) == 1
    values[series("gauge", "g", "", "", "c")] = 2.0
    assert b'{l="c"} 2.0' in encoded(application_families(Merged(values, 0, 0), shapes), encoder, "text")
    assert len(asked) == 2


def test_forms_are_bounded() -> None:
    """A client that asks for ever new versions of the format fills no memory."""
    shapes = Shapes()
    values = {series("gauge", "g", "", "", "a"): 1.0}
    for form in map(str, range(20)):
        (family,) = application_families(Merged(values, 0, 0), shapes)
        encoded([family], choose_encoder("")[0], form)
    assert isinstance(family, summed.Summed)
    assert list(family._shape.templates) == ["16", "17", "18", "19"]


@pytest.mark.parametrize("line", ["g 1.0 1700000000", "g 2.0", "g 1.0\ng 1.0", "", "# EOF"])
def test_texts_of_another_kind(line: str) -> None:
    """What an encoder writes in a way of its own, as with a time behind the number, is left to it."""
    shapes, whole = Shapes(), f"{line}\n".encode()
    for value in (1.0, 3.0):
        families = application_families(Merged({series("gauge", "g", "", ""): value}, 0, 0), shapes)
        assert encoded(families, lambda registry: whole if registry.collect() else b"", "x") == whole
