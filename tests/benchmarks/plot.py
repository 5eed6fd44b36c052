"""Growth as a picture: lines over two axes, written by hand as SVG. Both axes are logarithmic: twice as much is a step.

The colours are legible on white and on black alike; the text takes that of the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 40, 48
COLOURS = ("#2f81f7", "#d29922", "#3fb950", "#f85149", "#a371f7", "#8b949e", "#db61a2", "#39c5cf")
STYLE = """
text { font: 12px sans-serif; fill: #57606a } .title { font-weight: bold; font-size: 14px }
.grid { stroke: #8b949e; stroke-opacity: .3 } .line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } }
"""

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From the first to the last tick, on so many pixels."""

    ticks: Sequence[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high = log10(self.ticks[0]), log10(self.ticks[-1])
        return self.start + (log10(value) - low) / (high - low or 1) * (self.end - self.start)


def ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each power of ten, as far as the values go."""
    low, high = min(values), max(values)
    found = [step * 10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1) for step in (1, 2, 5)]
    first = max((number for number, tick in enumerate(found) if tick <= low), default=0)
    last = next((number for number, tick in enumerate(found) if tick >= high), len(found) - 1)
    return found[first : max(last, first + 1) + 1]


def plot(title: str, across: str, up: str, lines: Mapping[str, Line]) -> str:
    """Return an SVG. Every value must be above zero."""
    points = [point for line in lines.values() for point in line]
    x = Axis(sorted({point[0] for point in points}), LEFT, WIDTH - RIGHT)
    y = Axis(ticks([point[1] for point in points]), HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 22, title, "title"), _text(LEFT, HEIGHT - 10, across), _text(6, TOP - 6, up)]
    for tick in x.ticks:
        parts.append(_grid(x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM))
        parts.append(_text(x.at(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", anchor="middle"))
    for tick in y.ticks:
        parts.append(_grid(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick)))
        parts.append(_text(LEFT - 6, y.at(tick) + 4, f"{tick:g}", anchor="end"))
    for (name, line), colour, place in zip(lines.items(), COLOURS, _apart(lines, y), strict=False):
        path = " ".join(f"{x.at(one):.1f},{y.at(other):.1f}" for one, other in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        parts.append(f'<rect x="{WIDTH - RIGHT + 8}" y="{place - 5:.1f}" width="10" height="3" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 22, place, name))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return "\n".join((head, f"<style>{STYLE}</style>", *parts, "</svg>")) + "\n"


def _apart(lines: Mapping[str, Line], y: Axis) -> list[float]:
    """Where the names stand: at the end of their lines, but not on each other."""
    wanted = {name: y.at(line[-1][1]) + 4 for name, line in lines.items()}
    placed: dict[str, float] = {}
    lowest = float(TOP)
    for name in sorted(wanted, key=wanted.__getitem__):
        placed[name] = lowest = max(wanted[name], lowest + 15)
    return [placed[name] for name in lines]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
