"""The output of `fleetune simulate`: a table of figures with a column for each simulation. Text only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.text import many, percent
from orchestrator.pages.tables import aligned
from orchestrator.simulate.figures import Figures
from orchestrator.simulate.values import Setup, Simulated

_MINUS, _NOTHING = "−", "–"
_UNITS = ((3600.0, "h"), (60.0, "min"), (0.0, "s"))

Row = tuple[str, ...]
Words = Callable[[Sequence[float]], list[str]]


def page(simulations: Sequence[tuple[str, Figures]]) -> str:
    """Format a table with a column for each simulation, by name; for two, also their difference."""
    return "\n".join(aligned(figure_rows(simulations), words=1))


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
        ("cluster", format_cluster(setup)),
        ("policy", setup.policy),
        ("cost of an interruption", f"{setup.preemption_cost_s:g} s"),
    ]
    if setup.jitter:
        pairs.append(("submissions", f"delayed by up to 10 s, seed {setup.jitter}"))
    if setup.failures_per_node_day:
        away = f"repaired after {setup.repair_s / 3600:g} h"
        pairs.append(("failures", f"{setup.failures_per_node_day:g} per node and day, {away}"))
    return pairs


def format_cluster(setup: Setup) -> str:
    """Format the cluster, as in `64 nodes x 8 GPUs`."""
    return f"{many(setup.nodes, 'node')} x {many(setup.gpus_per_node, 'GPU')}"


def figure_rows(simulations: Sequence[tuple[str, Figures]]) -> list[Row]:
    """Return the head, and (name, text, ...) for each figure, in suitable units; for two columns also a comparison."""
    columns = [figures for _, figures in simulations]
    rows: list[Row] = [("", *(name for name, _ in simulations), *(["change"] if len(columns) == 2 else []))]
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
    return [f"{three_digits(value / (unit_s or 1.0))} {sign}" for value in values_s]


def _each(form: Callable[[float], str]) -> Words:
    return lambda values: [form(value) for value in values]


def three_digits(value: float) -> str:
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def _relative(before: float, after: float) -> str:
    if before == after:
        return "same"
    if not before:
        return _NOTHING
    change = (after - before) / before
    return (
        f"x {three_digits(after / before)}"
        if change >= 9
        else _signed(100 * change, 0 if abs(change) >= 0.1 else 1, " %")
    )


def _points(before: float, after: float) -> str:
    return "same" if before == after else _signed(100 * (after - before), 1, " points")


def _difference(before: float, after: float) -> str:
    return "same" if before == after else _signed(after - before, 2)


def _signed(value: float, digits: int, unit: str = "") -> str:
    size = f"{abs(value):,.{digits}f}"
    sign = "" if not float(size.replace(",", "")) else "+" if value > 0 else _MINUS
    return f"{sign}{size}{unit}"


_FIGURES: tuple[tuple[str, str, Words, Callable[[float, float], str]], ...] = (
    ("completion time, mean", "mean_jct_s", times, _relative),
    ("completion time, median", "median_jct_s", times, _relative),
    ("completion time, 90th percentile", "p90_jct_s", times, _relative),
    ("completion time, 99th percentile", "p99_jct_s", times, _relative),
    ("wait, mean", "mean_wait_s", times, _relative),
    ("wait, longest", "longest_wait_s", times, _relative),
    ("slowdown, mean", "mean_bounded_slowdown", _each(three_digits), _relative),
    ("slowdown, gangs of 8 GPUs or more", "slowdown_of_big_gangs", _each(three_digits), _relative),
    ("fairness among tenants (Jain)", "jain", _each(three_digits), _difference),
    ("utilisation while jobs arrive", "utilisation", _each(percent), _points),
    ("preemptions", "preemptions", _each("{:,.0f}".format), _relative),
    ("preemptions, most of one job", "most_preemptions_of_a_job", _each("{:,.0f}".format), _relative),
    ("GPU time lost to interruptions", "lost_gpu_share", _each(percent), _points),
    ("first submission to last end", "makespan_s", times, _relative),
    ("simulated in", "wall_s", times, lambda *_: ""),
)
