"""The dashboard of deploy/grafana drawn as SVG: its own panels, titles, places and queries, with data of a Prometheus.

Runs in the process of whoever makes the pictures. It is no Grafana, which cannot run where the tests do: what it draws
is what a person would see of a short run, without Grafana's ways of looking closer.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from tests.support.hosts.prometheus import Prometheus
from tests.support.programs.service import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "prefork.json").read_text())
COLUMN, ROW, GAP = 50, 18, 4  # pixels of a step of Grafana's grid, and between panels
LETTER = 5.6  # pixels of one in a legend, or so
STEP_S = 0.5
COLOURS = ("#73bf69", "#5794f2", "#f2cc0c", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d", "#ffb357")
STYLE = """<style>
text { font: 11px Helvetica, Arial, sans-serif; fill: #ccccdc }
.title { font-weight: bold } .row { font-size: 13px; font-weight: bold } .faint { fill: #7b8087; font-size: 10px }
.stat { font-size: 26px; fill: #73bf69; text-anchor: middle }
.end { text-anchor: end } .middle { text-anchor: middle }
.panel { fill: #181b1f; stroke: #2c3235 } .grid { stroke: #2c3235 } polyline { fill: none; stroke-width: 1.5 }
.event { stroke: #b877d9; stroke-dasharray: 3 3 }
</style>"""

Points = list[tuple[float, float]]


def filled_in(query: str, window: str) -> str:
    """As Grafana sends it when everything is selected, with windows as long as the run is."""
    query = re.sub(r"\$(job|service|instance)\b", ".*", query).replace("$__rate_interval", window)
    return re.sub(r"\[1h\]", f"[{window}]", query)


def drawn(server: Prometheus, start: float, end: float, window: str) -> str:
    """The whole dashboard over this time."""
    asked = _Asked(server, start, end, window)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in DASHBOARD["panels"]) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}">', STYLE,
        f'<rect width="{24 * COLUMN}" height="{height}" fill="#111217"/>',
    ]  # fmt: skip
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        parts.append(f'<g transform="translate({at["x"] * COLUMN},{at["y"] * ROW})">')
        parts += _panel(panel, at["w"] * COLUMN - GAP, at["h"] * ROW - GAP, asked)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


class _Asked:
    """The values that Prometheus has of this time."""

    def __init__(self, server: Prometheus, start: float, end: float, window: str) -> None:
        self.start, self.end = start, end
        self._server, self._window = server, window
        annotations = [entry["expr"] for entry in DASHBOARD["annotations"]["list"]]
        self.events = [points[0][0] for query in annotations for _, points in self.series(query, "")]

    def series(self, query: str, legend: str) -> Iterator[tuple[str, Points]]:
        answer = self._server.get(
            "/api/v1/query_range", query=filled_in(query, self._window), start=str(self.start), end=str(self.end),
            step=str(STEP_S),
        )  # fmt: skip
        for series in answer["result"]:
            points = [(float(at), float(value)) for at, value in series["values"]]
            if points := [(at, value) for at, value in points if math.isfinite(value)]:
                yield re.sub(r"{{(\w+)}}", lambda found: series["metric"].get(found[1], ""), legend), points  # noqa: B023


def _panel(panel: dict[str, Any], width: int, height: int, asked: _Asked) -> Iterator[str]:
    if panel["type"] == "row":
        yield f'<text class="row" x="4" y="13">{escape(panel["title"])}</text>'
        return
    yield f'<rect class="panel" width="{width}" height="{height}" rx="2"/>'
    yield f'<text class="title" x="8" y="16">{escape(panel["title"])}</text>'
    series = [one for target in panel["targets"] for one in asked.series(target["expr"], target["legendFormat"])]
    defaults = panel["fieldConfig"]["defaults"]
    if not series:
        said = defaults.get("noValue", "No data")
        yield f'<text class="faint middle" x="{width / 2}" y="{height / 2}">{escape(said)}</text>'
    elif panel["type"] == "stat":
        text = escape(_shown(panel, *series[0]))
        small = ' style="font-size: 17px"' if LETTER * 2.4 * len(text) > width else ""
        yield f'<text class="stat"{small} x="{width / 2}" y="{height / 2 + 14}">{text}</text>'
    else:
        yield from _lines(series, width, height, defaults, asked)


def _shown(panel: dict[str, Any], name: str, points: Points) -> str:
    """What stands in a panel of one value: the name of the series, a word for the value, or the value."""
    defaults, value = panel["fieldConfig"]["defaults"], points[-1][1]
    if panel.get("options", {}).get("textMode") == "name":
        return name
    words = [mapping["options"].get(f"{value:g}") for mapping in defaults.get("mappings", ())]
    return next((str(word["text"]) for word in words if word), unit_of(defaults)(value))


def _lines(
    series: list[tuple[str, Points]], width: int, height: int, defaults: dict[str, Any], asked: _Asked
) -> Iterator[str]:
    text = unit_of(defaults)
    left, top, right, bottom = 58, 26, width - 8, height - 24
    most = defaults.get("max") or _top(max(value for _, points in series for _, value in points))

    def x(at: float) -> float:
        return left + (right - left) * (at - asked.start) / (asked.end - asked.start)

    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="faint end" x="{left - 4}" y="{y + 3:.1f}">{escape(text(most * share))}</text>'
    for at in asked.events:
        yield f'<line class="event" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top}" y2="{bottom}"/>'
    at_x = 8.0
    for number, (name, points) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(at):.1f},{bottom - (bottom - top) * value / most:.1f}" for at, value in _bends(points))
        yield f'<polyline stroke="{colour}" points="{path}"/>'
        if at_x + 11 + LETTER * len(name) < width:  # the others have a line, but no place for a name
            yield f'<rect fill="{colour}" x="{at_x}" y="{height - 13}" width="8" height="3"/>'
            yield f'<text class="faint" x="{at_x + 11}" y="{height - 8}">{escape(name)}</text>'
        at_x += 22 + LETTER * len(name)


def _top(value: float) -> float:
    """The top of an axis of two steps, each of a number that is easily read."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 0.1
    return next(2 * step * power for step in (0.5, 1, 1.5, 2, 2.5, 3, 4, 5) if 2 * step * power >= value * 0.999)


def _bends(points: Points) -> Iterator[tuple[float, float]]:
    """Those between which it is not level."""
    for before, (at, value), after in zip([None, *points], points, [*points[1:], None], strict=False):
        if before is None or after is None or not before[1] == value == after[1]:
            yield at, value


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms" if value else "0"
    return f"{value:.3g} s" if value < 3600 else f"{value / 3600:.3g} h"


def unit_of(defaults: dict[str, Any]) -> Callable[[float], str]:
    """How Grafana writes a value of this unit; `suffix: words` is any unit that it does not know."""
    kind, _, suffix = defaults["unit"].partition(":")
    return UNITS[kind] if kind != "suffix" else lambda value: f"{value:.3g}{suffix}"


UNITS: dict[str, Callable[[float], str]] = {
    "none": lambda value: f"{value:.3g}",
    "percentunit": lambda value: f"{100 * value:.3g}%",
    "cps": lambda value: f"{value:.3g}/s",
    "reqps": lambda value: f"{value:.4g}/s",
    "bytes": lambda value: f"{value / 2**20:.3g} MiB",
    "s": _seconds,
}
