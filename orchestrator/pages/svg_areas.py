"""Stacked areas over time, as SVG text. Pure functions. STYLE has the colours; pages also need that of `svg`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.pages import svg

# Adjacent colours also differ in lightness, for colour-blind readers. The last colour is grey.
STYLE = """
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
MOST_SERIES = 8

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, svg.WIDTH - 14, 26.0, 214.0


@dataclass(frozen=True)
class Area:
    """One layer of a stack, with a value of at least 0 for each span between edges."""

    name: str
    values: tuple[float, ...]
    colour: int  # 0 .. MOST_SERIES - 1


def stacked_area(
    edges: Sequence[float],
    areas: Sequence[Area],
    *,
    title: str,
    x_label: str,
    y_label: str,
    tips: Sequence[str],
    limit: svg.Mark | None = None,
) -> str:
    """Draw layers from bottom to top in the given order, as steps between the edges, with a tip for each span.

    `limit` is a line across the plot at a value of the y axis. Returns '' if there is no span.
    """
    if len(edges) < 2 or not areas:
        return ""
    sums = list(itertools.accumulate((area.values for area in areas), _sum, initial=(0.0,) * len(tips)))
    highest = svg.up_to_tick(max(*sums[-1], limit.at if limit else 0.0) or 1.0, whole=True)
    place = svg.even_bins((edges[0], edges[-1]), _LEFT, _RIGHT)
    xs = [place(edge) for edge in edges]
    parts = [svg.y_axis(highest, _LEFT, _RIGHT, _TOP, _BOTTOM, y_label)]
    for area, (low, high) in zip(areas, itertools.pairwise(sums), strict=True):
        if any(area.values):
            parts.append(svg.element("path", class_=f"area a{area.colour}", d=_outline(xs, low, high, highest)))
    parts.append(_limit(limit, highest) if limit else "")
    parts += [_hit(tip, *span) for tip, span in zip(tips, itertools.pairwise(xs), strict=True)]
    parts.append(svg.x_axis(svg.nice_ticks(edges[0], edges[-1], 8), place, _LEFT, _RIGHT, _BOTTOM, x_label))
    return svg.figure(_BOTTOM + 42, "".join(parts), title)


def _sum(low: Sequence[float], more: Sequence[float]) -> tuple[float, ...]:
    return tuple(one + other for one, other in zip(low, more, strict=True))


def _outline(xs: Sequence[float], low: Sequence[float], high: Sequence[float], highest: float) -> str:
    """Return the path along the top from left to right, and back along the bottom."""
    there = _steps(xs, high, highest)
    back = _steps(xs, low, highest)[::-1]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in there + back) + "Z"


def _steps(xs: Sequence[float], values: Sequence[float], highest: float) -> list[tuple[float, float]]:
    spans = zip(itertools.pairwise(xs), values, strict=True)
    return [(x, _height(value, highest)) for (before, after), value in spans for x in (before, after)]


def _height(value: float, highest: float) -> float:
    return _BOTTOM - value / highest * (_BOTTOM - _TOP)


def _hit(tip: str, before: float, after: float) -> str:
    shape = svg.element("rect", class_="hit", x=before, y=_TOP, width=after - before, height=_BOTTOM - _TOP)
    return svg.datum(tip, shape)


def _limit(limit: svg.Mark, highest: float) -> str:
    y = _height(limit.at, highest)
    line = svg.element("line", class_="mark", x1=_LEFT, x2=_RIGHT, y1=y, y2=y)
    return line + svg.plot_text(limit.label, _RIGHT, y - 6, "end", class_="mark-label")
