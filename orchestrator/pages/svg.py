"""Plots as SVG text: bars, axes, ticks, and formatted numbers. Pure functions; STYLE has the colours."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from cluster.text import compact, grouped

# CSS for a page that has plots, needed once. The colours are distinguishable with red-green colour blindness.
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
LABEL_CELLS = 24  # most characters of a label in a bar chart; wide characters count twice

WIDTH = 560.0
_SMALLEST_BAR = 1.5  # pixels; any value above 0 is visible
_BAR_HEIGHT, _ROW_GAP = 14.0, 10.0


@dataclass(frozen=True)
class Mark:
    """A line across a plot, at a value of the x axis."""

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
class Bins:
    """counts[i] is the number of values in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def filled(self) -> Bins:
        """Return the bins without empty ones at both ends."""
        there = [index for index, count in enumerate(self.counts) if count]
        if not there:
            return Bins((), ())
        return Bins(self.edges[there[0] : there[-1] + 2], self.counts[there[0] : there[-1] + 1])

    def merged(self, most: int, edge: float) -> Bins:
        """Merge neighbours until there are about `most` bins. If `edge` is an edge of a bin, it stays one."""
        step = math.ceil(len(self.counts) / most)
        first = self.edges.index(edge) % step if edge in self.edges else 0
        bounds = sorted({0, *range(first, len(self.counts), step), len(self.counts)})
        counts = (sum(self.counts[low:high]) for low, high in itertools.pairwise(bounds))
        return Bins(tuple(self.edges[at] for at in bounds), tuple(counts))


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


def nice_step(span: float, most: int) -> float:
    """Return the smallest step of the form 1, 2 or 5 x 10^n that splits `span` into at most `most` parts."""
    if span <= 0:
        return 1.0
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(factor * unit for factor in (1, 2, 5, 10, 20) if factor * unit >= raw * (1 - 1e-9))


def nice_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Return round values within [low, high]; `whole`: whole numbers only."""
    step = nice_step(high - low, most)
    step = max(step, 1.0) if whole else step
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
    bins: Bins,
    *,
    title: str,
    x_label: str,
    y_label: str,
    tips: Sequence[str],
    mark: Mark | None = None,
    series: int = 0,
) -> str:
    """Draw a histogram of vertical bars with a tip for each. Returns '' if there are no bins."""
    edges, counts = bins.edges, bins.counts
    if not counts:
        return ""
    left, right, top, bottom = 62.0, WIDTH - 14, 26.0, 214.0
    place = even_bins(edges, left, right)
    highest = up_to_tick(max(counts) or 1, whole=True)
    per_unit = (bottom - top) / highest
    parts = [y_axis(highest, left, right, top, bottom, y_label)]
    width = (right - left) / len(counts)
    gap = min(1.0, width / 5)
    for index, (count, tip) in enumerate(zip(counts, tips, strict=True)):
        tall = max(count * per_unit, _SMALLEST_BAR) if count else 0.0
        x = left + index * width
        shape = {"x": x + gap / 2, "width": width - gap}
        hit = element("rect", class_="hit", x=x, y=top, width=width, height=bottom - top)
        bar = element("rect", class_=f"bar s{series}", y=bottom - tall, height=tall, **shape)
        parts.append(datum(tip, hit + bar))
    parts.append(x_axis(_ticks_of(edges), place, left, right, bottom, x_label))
    if mark:
        parts.append(_mark(mark, edges[-1], place(mark.at), top, bottom))
    return figure(bottom + 42, "".join(parts), title)


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
    step = nice_step(value, 5)
    step = max(step, 1.0) if whole else step
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


def y_axis(highest: float, left: float, right: float, top: float, bottom: float, label: str) -> str:
    parts = []
    for tick in nice_ticks(0, highest, 5, whole=True):
        y = bottom - tick / highest * (bottom - top)
        parts += [
            element("line", class_="grid", x1=left, x2=right, y1=y, y2=y),
            plot_text(compact(tick), left - 6, y + 4, "end"),
        ]
    middle = (top + bottom) / 2
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


def _mark(mark: Mark, last: float, x: float, top: float, bottom: float) -> str:
    """Draw a mark. A value beyond the end of the axis is drawn at its end, with an arrow."""
    on_the_left = x < WIDTH / 2
    label = f"{mark.label} →" if mark.at > last else mark.label
    line = element("line", class_="mark", x1=x, x2=x, y1=top - 8, y2=bottom)
    anchor, aside = ("start", 5) if on_the_left else ("end", -5)
    return line + plot_text(label, x + aside, top - 10, anchor, class_="mark-label")


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
