"""Simulations as an HTML page: figures, GPUs in use and waited for over time, and tenants."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cluster.text import many
from orchestrator.pages import html as htmlpage
from orchestrator.pages import svg
from orchestrator.pages.tables import shortened
from orchestrator.simulate.figures import Floats, OverTime, figures, over_time, tenant_figures
from orchestrator.simulate.page import circumstances, figure_rows, format_cluster, three_digits, times
from orchestrator.simulate.values import Simulated

_SPANS = 168  # spans of a plot: an hour each in a week
_NAMED = svg.MOST_AREAS - 1  # tenants with a separate colour
_TENANTS_SHOWN = 100
_NAME_CELLS = 24
_UNITS = ((3 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (0.0, 60.0, "minutes"))  # from, seconds, name
_DEFINITIONS = (
    "Completion time is the time from submission to end. Wait is the part of it in which the job makes no progress, "
    "including interruptions and their cost. Slowdown is completion time divided by run time, at least 1; a run time "
    "below 60 s counts as 60 s. Jain's index is 1 if all tenants have the same mean slowdown."
)
_STYLE = """
.legend span { display: inline-block; white-space: nowrap; }
.figures table { width: auto; } .figures th, .figures td { padding-right: 32px; }
.definitions { margin-top: 10px; max-width: 760px; color: var(--soft); font-size: 13px; }
"""
_TENANT_HEAD = ("tenant", "jobs", "GPU-hours", "mean wait", "longest wait", "mean slowdown")


def report(simulations: Sequence[tuple[str, Simulated]]) -> str:
    """Make the page, for named simulations of one trace. It is also well-formed XML."""
    first = simulations[0][1]
    clusters = " and ".join(format_cluster(simulated.setup) for _, simulated in simulations)
    title = f"Simulation: {clusters}, policy {first.setup.policy}"
    colours = {one.tenant: at for at, one in enumerate(tenant_figures(first)[:_NAMED])}
    body = [
        f"<h1>{htmlpage.shown(title)}</h1>\n",
        htmlpage.facts(_facts(simulations)),
        htmlpage.section("Figures", _figures(simulations), f'<p class="definitions">{_DEFINITIONS}</p>\n'),
        *(_sections(name if len(simulations) > 1 else "", one, colours) for name, one in simulations),
    ]
    return htmlpage.document(htmlpage.shown(title), "".join(body), svg.AREA_STYLE + _STYLE)


def _facts(simulations: Sequence[tuple[str, Simulated]]) -> list[tuple[str, str]]:
    """Return facts that the simulations have in common, and the cluster of each."""
    clusters = [("cluster", format_cluster(simulated.setup)) for _, simulated in simulations]
    return [pair for one in circumstances(simulations[0][1]) for pair in (clusters if one[0] == "cluster" else [one])]


def _figures(simulations: Sequence[tuple[str, Simulated]]) -> str:
    head, *rows = figure_rows([(name, figures(simulated)) for name, simulated in simulations])
    return f'<div class="figures">{htmlpage.card(htmlpage.number_table(head, rows))}</div>\n'


def _sections(name: str, simulated: Simulated, colours: dict[str, int]) -> str:
    """Make the plots and the tenants of one simulation. `name` is '' if there is only one."""
    suffix = f", {htmlpage.shown(name)}" if name else ""
    course = over_time(simulated, _SPANS)
    gpus = simulated.setup.nodes * simulated.setup.gpus_per_node
    limit = svg.Mark(float(gpus), f"{many(gpus, 'GPU')} in total")
    plots = (
        _plot("GPUs in use", course, course.in_use, colours, limit),
        _plot("GPUs that jobs wait for", course, course.waiting, colours, None),
    )
    grid = f'<div class="plots">{"".join(map(htmlpage.card, plots))}</div>\n'
    return htmlpage.section(f"Over time{suffix}", grid) + htmlpage.section(f"Tenants{suffix}", _tenants(simulated))


def _plot(title: str, course: OverTime, gpus: Floats, colours: dict[str, int], limit: svg.Mark | None) -> str:
    _, unit_s, unit_name = next(one for one in _UNITS if course.edges_s[-1] >= one[0])
    edges = [float(edge) / unit_s for edge in course.edges_s]
    areas = _areas(course.tenants, gpus, colours)
    plot = svg.stacked_area(
        edges,
        areas,
        title=title,
        x_label=f"{unit_name} since the first submission",
        y_label="GPUs",
        tips=[_tip(areas, at, *span, unit_name) for at, span in enumerate(itertools.pairwise(edges))],
        limit=limit,
    )
    legend = svg.legend((f"a{area.colour}", area.name) for area in reversed(areas))  # in the order of the plot
    return f"<h3>{title}</h3>{legend}{plot}"


def _areas(tenants: Sequence[str], gpus: Floats, colours: dict[str, int]) -> list[svg.Area]:
    """Return the largest tenants in the order of their colours, and the others together in the last colour."""
    rows = {tenant: gpus[at] for at, tenant in enumerate(tenants)}
    areas = [
        svg.Area(shortened(tenant, _NAME_CELLS), tuple(rows[tenant].tolist()), colour)
        for tenant, colour in colours.items()
    ]
    others = [row for tenant, row in rows.items() if tenant not in colours]
    if others:
        total = tuple(float(sum(values)) for values in zip(*others, strict=True))
        areas.append(svg.Area(many(len(others), "other"), total, svg.MOST_AREAS - 1))
    return areas


def _tip(areas: Sequence[svg.Area], at: int, begin: float, end: float, unit: str) -> str:
    parts = [f"{area.name} {area.values[at]:,.1f}" for area in reversed(areas) if area.values[at] >= 0.05]
    total = sum(area.values[at] for area in areas)
    return f"{begin:.1f} to {end:.1f} {unit}: {total:,.1f} GPUs" + (f" ({', '.join(parts)})" if parts else "")


def _tenants(simulated: Simulated) -> str:
    tenants = tenant_figures(simulated)
    waits = times([one.mean_wait_s for one in tenants])
    longest = times([one.longest_wait_s for one in tenants])
    rows = [
        (
            one.tenant,
            f"{one.jobs:,}",
            three_digits(one.gpu_s / 3600),
            wait,
            most,
            three_digits(one.mean_bounded_slowdown),
        )
        for one, wait, most in zip(tenants[:_TENANTS_SHOWN], waits, longest, strict=False)
    ]
    left_out = len(tenants) - len(rows)
    more = f"<p>and {many(left_out, 'other')} with less GPU time</p>" if left_out else ""
    return htmlpage.card(htmlpage.number_table(_TENANT_HEAD, rows, "text") + more)
