"""Plots as SVG text: bars, stacked areas, axes, ticks, and formatted numbers. Pure functions."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from cluster.text import compact, grouped

# CSS for a page that has plots, needed once; a page with areas needs AREA_STYLE, too. The colours are distinguishable
# with red-green colour blindness.
STYLE = """
:root { --plot-text: #5b6068; --plot-line: #d9dce1; --plot-mark: #b3261e; --plot-0: #3569c4; --plot-1: #e0912f; }
@media (prefers-color-scheme: dark) {
  :root { --plot-text: #a3a9b3; --plot-line: #353a43; --plot-mark: #ff8a80; --plot-0: #6f9ff0; --plot-1: #f0b060; }
}
svg.plot { display: block; width: 100%; max-width: 680px; height: auto; font: 12px system-ui, sans-serif; }
svg.plot text { fill: var(--plot-text); }
svg.plot .grid { stroke: var(--plot-line); stroke-width: 1; }
svg.plot .axis { stroke: var(--plot-text); stroke-width: 1; }
svg.plot .mark { stroke: var(--plot-mark); stroke-width: 1.5; stroke-dasharray: 5 3; }
svg.plot text.mark-label { fill: var(--plot-mark); font-weight: 600; paint-order: stroke; stroke: var(--card, #fff);
  stroke-width: 4px; }
svg.plot .hit { fill: transparent; }
svg.plot g.datum:hover .bar { opacity: 0.7; }
svg.plot .s0 { fill: var(--plot-0); }
svg.plot .s1 { fill: var(--plot-1); }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; }
.swatch.s0 { background: var(--plot-0); }
.swatch.s1 { background: var(--plot-1); }
@media print { svg.plot, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
# Adjacent colours also differ in lightness, for colour-blind readers. The last colour is grey.
AREA_STYLE = """
:root { --area-0: #0072b2; --area-1: #e69f00; --area-2: #009e73; --area-3: #cc79a7; --area-4: #56b4e9;
  --area-5: #d55e00; --area-6: #e3d43a; --area-7: #9aa0a8; --area-gap: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --area-0: #3f8fd2; --area-1: #eba91f; --area-2: #1fb58a; --area-3: #d58db6; --area-4: #86c9f2;
    --area-5: #e5702a; --area-6: #efe25a; --area-7: #737a84; --area-gap: #1c1f25; }
}
svg.plot .area { stroke: var(--area-gap); stroke-width: 0.4; }
svg.plot g.datum:hover .hit { fill: var(--plot-text); fill-opacity: 0.18; }
""" + "".join(
    f"svg.plot .a{at} {{ fill: var(--area-{at}); }} .swatch.a{at} {{ background: var(--area-{at}); }}\n"
    for at in range(8)
)
MOST_AREAS = 8
LABEL_CELLS = 24  # most characters of a label in a bar chart; wide characters count twice

WIDTH = 560.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, WIDTH - 14, 26.0, 214.0  # edges of all plots except bar charts
_SMALLEST_BAR = 1.5  # pixels; any value above 0 is visible
_BAR_HEIGHT, _ROW_GAP = 14.0, 10.0


@dataclass(frozen=True)
class Mark:
    """A line across a plot, at a value of the x axis; across areas, of the y axis."""

    at: float
    label: str


@dataclass(frozen=True)
class BarRow:
    """One category of a bar chart, with a bar for each series."""

    label: str  # at most LABEL_CELLS
    values: tuple[float, ...]
    words: tuple[str, ...]  # printed at the end of each bar
    tips: tuple[str, ...]  # shown when the pointer rests on the bar


@dataclass(frozen=True)
class Area:
    """One layer of a stack, with a value of at least 0 for each span between edges."""

    name: str
    values: tuple[float, ...]
    colour: int  # 0 .. MOST_AREAS - 1


def format_bin(low: float, high: float) -> str:
    """Format the whole numbers in [low, high): `128–255`."""
    first, last = math.ceil(low), math.ceil(high) - 1
    return f"{first:,}–{last:,}" if last > first else f"{first:,}"


def element(name: str, inside: str = "", /, **attributes: str | float) -> str:
    """Make an element. `inside` is markup already; values of attributes are escaped.

    Attribute names are adapted: class_ becomes class, text_anchor becomes text-anchor.
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else f"{value:g}"}"'
        for key, value in attributes.items()
    )
    return f"<{name}{''.join(pairs)}>{inside}</{name}>" if inside else f"<{name}{''.join(pairs)}/>"


def _nice_step(span: float, most: int, whole: bool) -> float:
    """Return the smallest step of the form 1, 2 or 5 x 10^n that splits `span` into at most `most` parts."""
    if span <= 0:
        return 1.0
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10, 20) if factor * unit >= raw * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def nice_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Return round values within [low, high]; `whole`: whole numbers only."""
    step = _nice_step(high - low, most, whole)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def even_bins(edges: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """Return a function from a value to its position in [low, high], which gives all bins the same width."""
    bins = len(edges) - 1

    def place(value: float) -> float:
        if value <= edges[0] or value >= edges[-1]:
            return low if value <= edges[0] else high
        index = bisect.bisect_right(edges, value) - 1
        within = (value - edges[index]) / (edges[index + 1] - edges[index])
        return low + (index + within) / bins * (high - low)

    return place


def figure(height: float, body: str, title: str) -> str:
    """Make the <svg> element around a body that is drawn for a width of 560."""
    return element(
        "svg",
        body,
        xmlns="http://www.w3.org/2000/svg",
        class_="plot",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_label=title,
    )


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    x_label: str,
    y_label: str,
    tips: Sequence[str],
    mark: Mark | None = None,
    series: int = 0,
) -> str:
    """Draw a histogram: counts[i] values lie in [edges[i], edges[i + 1]), with a tip for each bar."""
    place = even_bins(edges, _LEFT, _RIGHT)
    highest = up_to_tick(max(counts) or 1, whole=True)
    per_unit = (_BOTTOM - _TOP) / highest
    parts = [_y_axis(highest, y_label)]
    width = (_RIGHT - _LEFT) / len(counts)
    gap = min(1.0, width / 5)
    for index, (count, tip) in enumerate(zip(counts, tips, strict=True)):
        tall = max(count * per_unit, _SMALLEST_BAR) if count else 0.0
        x = _LEFT + index * width
        shape = {"x": x + gap / 2, "width": width - gap}
        bar = element("rect", class_=f"bar s{series}", y=_BOTTOM - tall, height=tall, **shape)
        parts.append(datum(tip, _hit(x, width) + bar))
    parts.append(x_axis(_ticks_of(edges), place, _LEFT, _RIGHT, _BOTTOM, x_label))
    if mark:
        parts.append(_mark(mark, edges[-1], place(mark.at)))
    return figure(_BOTTOM + 42, "".join(parts), title)


def stacked_area(
    edges: Sequence[float],
    areas: Sequence[Area],
    *,
    title: str,
    x_label: str,
    y_label: str,
    tips: Sequence[str],
    limit: Mark | None = None,
) -> str:
    """Draw layers from bottom to top in the given order, as steps between the edges, with a tip for each span.

    `limit` is a line across the plot at a value of the y axis. Returns '' if there is no span.
    """
    if len(edges) < 2 or not areas:
        return ""
    sums = [(0.0,) * len(tips)]
    for area in areas:
        sums.append(tuple(map(operator.add, sums[-1], area.values)))
    highest = up_to_tick(max(*sums[-1], limit.at if limit else 0.0) or 1.0, whole=True)
    place = even_bins((edges[0], edges[-1]), _LEFT, _RIGHT)
    xs = [place(edge) for edge in edges]
    parts = [_y_axis(highest, y_label)]
    for area, (low, high) in zip(areas, itertools.pairwise(sums), strict=True):
        if any(area.values):
            parts.append(element("path", class_=f"area a{area.colour}", d=_outline(xs, low, high, highest)))
    parts.append(_limit(limit, highest) if limit else "")
    parts += [datum(tip, _hit(x, after - x)) for tip, (x, after) in zip(tips, itertools.pairwise(xs), strict=True)]
    parts.append(x_axis(nice_ticks(edges[0], edges[-1], 8), place, _LEFT, _RIGHT, _BOTTOM, x_label))
    return figure(_BOTTOM + 42, "".join(parts), title)


def bar_chart(rows: Sequence[BarRow], *, title: str, x_label: str) -> str:
    """Draw horizontal bars; the bars of a row are below each other. Returns '' if there are no rows."""
    if not rows:
        return ""
    left, right, top = 168.0, WIDTH - 74, 6.0
    highest = up_to_tick(max((value for row in rows for value in row.values), default=0) or 1)
    place = even_bins((0.0, highest), left, right)
    row_height = max(len(row.values) for row in rows) * _BAR_HEIGHT + _ROW_GAP
    bottom = top + len(rows) * row_height
    ticks = nice_ticks(0, highest)
    parts = [element("line", class_="grid", x1=place(at), x2=place(at), y1=top, y2=bottom) for at in ticks]
    parts += [_bar_row(row, top + index * row_height, row_height, place) for index, row in enumerate(rows)]
    parts.append(x_axis(ticks, place, left, right, bottom, x_label, compact))
    return figure(bottom + 42, "".join(parts), title)


def legend(series: Iterable[tuple[str, str]]) -> str:
    """Make an HTML legend of (CSS class, name) pairs."""
    items = (f'<span><i class="swatch {style}"></i> {escape(name)}</span>' for style, name in series)
    return f'<p class="legend">{" ".join(items)}</p>'


def up_to_tick(value: float, whole: bool = False) -> float:
    step = _nice_step(value, 5, whole)
    return step * math.ceil(value / step - 1e-9)


def _ticks_of(edges: Sequence[float]) -> list[float]:
    """Return round numbers if all bins are equally wide; else edges, as many as are readable."""
    spans = [after - before for before, after in itertools.pairwise(edges)]
    if max(spans) <= 1.1 * min(spans):
        return nice_ticks(edges[0], edges[-1], 8)
    return list(edges[:: math.ceil(len(spans) / 9)])


def datum(tip: str, shapes: str) -> str:
    return element("g", element("title", escape(tip)) + shapes, class_="datum")


def plot_text(text: str, x: float, y: float, anchor: str = "middle", **more: str | float) -> str:
    return element("text", escape(text) or " ", x=x, y=y, text_anchor=anchor, **more)


def _y_axis(highest: float, label: str) -> str:
    parts = []
    for tick in nice_ticks(0, highest, 5, whole=True):
        y = _height(tick, highest)
        parts += [
            element("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y, y2=y),
            plot_text(compact(tick), _LEFT - 6, y + 4, "end"),
        ]
    middle = (_TOP + _BOTTOM) / 2
    return "".join(parts) + plot_text(label, 14, middle, transform=f"rotate(-90 14 {middle:g})")


def x_axis(
    ticks: Sequence[float],
    place: Callable[[float], float],
    left: float,
    right: float,
    bottom: float,
    label: str,
    number: Callable[[float], str] = grouped,
) -> str:
    parts = [element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom)]
    for tick in ticks:
        x = place(tick)
        parts += [
            element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4),
            plot_text(number(tick), x, bottom + 17, "end" if tick == ticks[-1] and x > right - 1 else "middle"),
        ]
    return "".join(parts) + plot_text(label, (left + right) / 2, bottom + 35)


def _mark(mark: Mark, last: float, x: float) -> str:
    """Draw a mark. A value beyond the end of the axis is drawn at its end, with an arrow."""
    on_the_left = x < WIDTH / 2
    label = f"{mark.label} →" if mark.at > last else mark.label
    line = element("line", class_="mark", x1=x, x2=x, y1=_TOP - 8, y2=_BOTTOM)
    anchor, aside = ("start", 5) if on_the_left else ("end", -5)
    return line + plot_text(label, x + aside, _TOP - 10, anchor, class_="mark-label")


def _bar_row(row: BarRow, y: float, height: float, place: Callable[[float], float]) -> str:
    left = place(0)
    parts = [plot_text(row.label, left - 8, y + height / 2 + 4, "end")]
    y += (height - len(row.values) * _BAR_HEIGHT) / 2
    for series, (value, words, tip) in enumerate(zip(row.values, row.words, row.tips, strict=True)):
        long = max(place(value) - left, _SMALLEST_BAR) if value else 0.0
        top = y + series * _BAR_HEIGHT
        bar = element("rect", class_=f"bar s{series}", x=left, y=top + 1, width=long, height=_BAR_HEIGHT - 2)
        parts.append(datum(tip, bar + plot_text(words, left + long + 5, top + _BAR_HEIGHT - 3, "start")))
    return "".join(parts)


def _outline(xs: Sequence[float], low: Sequence[float], high: Sequence[float], highest: float) -> str:
    """Return the path along the top from left to right, and back along the bottom."""

    def along(values: Sequence[float]) -> list[str]:
        spans = zip(itertools.pairwise(xs), values, strict=True)
        return [f"{x:.1f} {_height(value, highest):.1f}" for span, value in spans for x in span]

    return "M" + "L".join(along(high) + along(low)[::-1]) + "Z"


def _height(value: float, highest: float) -> float:
    return _BOTTOM - value / highest * (_BOTTOM - _TOP)


def _hit(x: float, width: float) -> str:
    return element("rect", class_="hit", x=x, y=_TOP, width=width, height=_BOTTOM - _TOP)


def _limit(limit: Mark, highest: float) -> str:
    y = _height(limit.at, highest)
    line = element("line", class_="mark", x1=_LEFT, x2=_RIGHT, y1=y, y2=y)
    return line + plot_text(limit.label, _RIGHT, y - 6, "end", class_="mark-label")
