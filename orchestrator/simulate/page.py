"""The output of `fleetune simulate`: a table of figures with a column for each simulation. Text only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.text import many, percent
from orchestrator.simulate.figures import Figures
from orchestrator.simulate.values import Setup, Simulated

_MINUS, _NOTHING = "−", "–"
_UNITS = ((3600.0, "h"), (60.0, "min"), (0.0, "s"))

Row = tuple[str, ...]
Words = Callable[[Sequence[float]], list[str]]


def page(simulations: Sequence[tuple[str, Figures]]) -> str:
    """Format a table with a column for each simulation, by name; for two, also their difference."""
    columns = [figures for _, figures in simulations]
    two = len(columns) == 2
    head = ("", *(name for name, _ in simulations), *(("change",) if two else ()))
    rows = [head, *figure_rows(columns)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(_line(row, widths) for row in rows)


def headline(simulated: Simulated) -> str:
    """Describe the simulation in one line, except for the nodes: `26,936 jobs of 11 tenants; 8 GPUs a node; ...`."""
    first, _, (_, policy), *others = circumstances(simulated)
    node = f"{many(simulated.setup.gpus_per_node, 'GPU')} a node"
    return "; ".join([first[1], node, f"policy {policy}", *(f"{name}: {words}" for name, words in others)])


def circumstances(simulated: Simulated) -> list[tuple[str, str]]:
    """Describe the simulation as (name, text) pairs."""
    setup, tenants = simulated.setup, len({job.tenant for job in simulated.jobs})
    pairs = [
        ("trace", f"{many(len(simulated.jobs), 'job')} of {many(tenants, 'tenant')}"),
        ("cluster", cluster_words(setup)),
        ("policy", setup.policy),
        ("an interruption costs", f"{setup.preemption_cost_s:g} s"),
    ]
    if setup.jitter:
        pairs.append(("submissions", f"up to 10 s later, seed {setup.jitter}"))
    if setup.failures_per_node_day:
        away = f"each away for {setup.repair_s / 3600:g} h"
        pairs.append(("failures", f"{setup.failures_per_node_day:g} per node and day, {away}"))
    return pairs


def cluster_words(setup: Setup) -> str:
    """Format the cluster, as in `64 nodes x 8 GPUs`."""
    return f"{many(setup.nodes, 'node')} x {many(setup.gpus_per_node, 'GPU')}"


def figure_rows(columns: Sequence[Figures]) -> list[Row]:
    """Return (name, text, ...) for each figure, in suitable units; for two columns also a comparison."""
    rows = list[Row]()
    for label, field, words, change in _FIGURES:
        values = [getattr(figures, field) for figures in columns]
        known = [value for value in values if value is not None]
        told = iter(words(known))
        cells = [next(told) if value is not None else _NOTHING for value in values]
        if len(columns) == 2:
            cells.append(change(*known) if len(known) == 2 else "")
        rows.append((label, *cells))
    return rows


def times(values_s: Sequence[float]) -> list[str]:
    """Format times in the unit that fits the largest, as in `2.31 h`."""
    largest = max(values_s, default=0.0)
    unit_s, sign = next(unit for unit in _UNITS if largest >= unit[0])
    return [f"{_three(value / (unit_s or 1.0))} {sign}" for value in values_s]


def shares(values: Sequence[float]) -> list[str]:
    """Format shares, as in `78.2 %`."""
    return [percent(value) for value in values]


def plain(values: Sequence[float]) -> list[str]:
    """Format numbers with three digits."""
    return [_three(value) for value in values]


def _three(value: float) -> str:
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def _counts(values: Sequence[float]) -> list[str]:
    return [f"{value:,.0f}" for value in values]


def _relative(before: float, after: float) -> str:
    if before == after:
        return "same"
    if not before:
        return _NOTHING
    change = (after - before) / before
    return f"x {_three(after / before)}" if change >= 9 else _signed(100 * change, 0 if abs(change) >= 0.1 else 1, " %")


def _points(before: float, after: float) -> str:
    return "same" if before == after else _signed(100 * (after - before), 1, " points")


def _difference(before: float, after: float) -> str:
    return "same" if before == after else _signed(after - before, 2)


def _signed(value: float, digits: int, unit: str = "") -> str:
    size = f"{abs(value):,.{digits}f}"
    sign = "" if not float(size.replace(",", "")) else "+" if value > 0 else _MINUS
    return f"{sign}{size}{unit}"


def _nothing(before: float, after: float) -> str:
    return ""


_FIGURES: tuple[tuple[str, str, Words, Callable[[float, float], str]], ...] = (
    ("completion time, mean", "mean_jct_s", times, _relative),
    ("completion time, median", "median_jct_s", times, _relative),
    ("completion time, 90 % below", "p90_jct_s", times, _relative),
    ("completion time, 99 % below", "p99_jct_s", times, _relative),
    ("wait, mean", "mean_wait_s", times, _relative),
    ("wait, longest", "longest_wait_s", times, _relative),
    ("slowdown, mean", "mean_bounded_slowdown", plain, _relative),
    ("slowdown, gangs of 8 GPUs or more", "slowdown_of_big_gangs", plain, _relative),
    ("fairness among tenants (Jain)", "jain", plain, _difference),
    ("GPUs in use while jobs come", "utilisation", shares, _points),
    ("preemptions", "preemptions", _counts, _relative),
    ("preemptions, most of one job", "most_preemptions_of_a_job", _counts, _relative),
    ("GPU time lost to interruptions", "lost_gpu_share", shares, _points),
    ("first submission to last end", "makespan_s", times, _relative),
    ("simulated in", "wall_s", times, _nothing),
)


def _line(row: Row, widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if not at else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
