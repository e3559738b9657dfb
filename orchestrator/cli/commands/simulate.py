"""The command `fleetune simulate`: replays a trace of jobs on a simulated cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer

from cluster.errors import InputError
from cluster.text import many
from jobs.storage import files as storage
from jobs.storage import strict_json
from orchestrator.cli.options import Json, Quiet, check_output_file, same_file
from orchestrator.simulate.values import Setup, Simulated, TraceJob

Report = Callable[[float], None]

_MOST_NODES, _MOST_GPUS_OF_A_NODE = 100_000, 1024


def simulate(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="CSV: submit_s, duration_s, num_gpus, tenant.")],
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Number of nodes.")],
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", metavar="N", help="Number of GPUs per node.")] = 8,
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME", help="Scheduling policy: fifo, easy, las, fair or default.")
    ] = "default",
    what_if_nodes: Annotated[
        int | None, typer.Option("--what-if-nodes", metavar="M", help="Also simulate M nodes, and compare.")
    ] = None,
    jitter: Annotated[
        int, typer.Option("--jitter", metavar="K", help="Seed of random delays of up to 10 s per job; 0: none.")
    ] = 0,
    preemption_cost_s: Annotated[
        float, typer.Option("--preemption-cost-s", metavar="S", help="Seconds that an interruption adds to a job.")
    ] = 60.0,
    failures_per_node_day: Annotated[
        float, typer.Option("--failures-per-node-day", metavar="R", help="Average failures of a node per day.")
    ] = 0.0,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="FILE", help="Write where and when each job ran, as CSV.")
    ] = None,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Write a page of figures and plots, as HTML.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a trace of jobs on a cluster of any size, in seconds.

    The trace is a CSV file with a line for each job: when it was submitted and how long it ran (in seconds), its GPUs,
    its tenant and, optionally, its priority. Nothing is started, and no GPU is needed.
    """
    setup = Setup(nodes, gpus_per_node, policy, preemption_cost_s, jitter, failures_per_node_day=failures_per_node_day)
    check_setup(setup, what_if_nodes)
    check_targets(trace, schedule, report)
    simulations = _simulations(trace, setup, what_if_nodes, quiet or json_)
    if not json_:
        from orchestrator.simulate.figures import figures
        from orchestrator.simulate.page import headline, page

        typer.echo(headline(simulations[0][1]))
        typer.echo(page([(name, figures(one)) for name, one in simulations]))
    written = []
    if schedule is not None:
        from orchestrator.simulate.trace import schedule_csv

        storage.write_bytes(schedule, schedule_csv(simulations[0][1]).encode())
        written.append(f"schedule {schedule}")
    if report is not None:
        from orchestrator.simulate.report import report as html_page

        storage.write_bytes(report, html_page(simulations).encode())
        written.append(f"report {report}")
    for line in () if json_ or quiet else written:
        typer.echo(line)
    if json_:
        typer.echo(as_json(simulations))


def check_setup(setup: Setup, what_if_nodes: int | None) -> None:
    """Check the options. Raises InputError, which names the option."""
    counts = [("--nodes", setup.nodes), ("--gpus-per-node", setup.gpus_per_node)]
    counts += [("--what-if-nodes", what_if_nodes)] if what_if_nodes is not None else []
    for name, value in counts:
        if value < 1:
            without = "GPUs" if name == "--gpus-per-node" else "nodes"
            raise InputError(f"{name} must be at least 1: a cluster without {without} runs nothing")
        most = _MOST_GPUS_OF_A_NODE if name == "--gpus-per-node" else _MOST_NODES
        if value > most:
            raise InputError(f"{name} must be at most {most:,}, but is {value:,}")
    amounts = (
        ("--jitter", float(setup.jitter), "it is a seed, and 0 leaves the trace unchanged"),
        ("--preemption-cost-s", setup.preemption_cost_s, "an interruption cannot save work"),
        ("--failures-per-node-day", setup.failures_per_node_day, "0 means that no node fails"),
    )
    for name, amount, why in amounts:
        if not (math.isfinite(amount) and amount >= 0):
            raise InputError(f"{name} must be a number of at least 0, but is {amount:g}: {why}")
    from orchestrator.scheduling.policy import policy_named

    policy_named(setup.policy)


def check_targets(trace: str, schedule: str | None, report: str | None) -> None:
    """Check the output files. Raises InputError if one would overwrite another, or cannot be a file."""
    for name, target in (("--schedule", schedule), ("--report", report)):
        check_output_file(name, target, {trace: "the trace itself"})
    if schedule is not None and report is not None and same_file(schedule, report):
        raise InputError(f"--schedule and --report are both {report}: give two files")


def as_json(simulations: Sequence[tuple[str, Simulated]]) -> str:
    """Format as one JSON object: the figures of the first simulation, and those of the second under `what_if`."""
    from orchestrator.simulate.figures import figures

    first, *others = (dataclasses.asdict(figures(simulated)) for _, simulated in simulations)
    return strict_json.for_programs({**first, **({"what_if": others[0]} if others else {})})


def _simulations(trace: str, setup: Setup, what_if_nodes: int | None, silent: bool) -> list[tuple[str, Simulated]]:
    from orchestrator.simulate.engine import simulate as run
    from orchestrator.simulate.trace import read_trace

    jobs = read_trace(trace, setup.nodes * setup.gpus_per_node)
    setups = [setup]
    if what_if_nodes is not None:
        _check_gangs(jobs, what_if_nodes, setup.gpus_per_node)
        setups.append(dataclasses.replace(setup, nodes=what_if_nodes))
    found = []
    for one in setups:
        name = many(one.nodes, "node")
        with shown_progress(f"{many(len(jobs), 'job')} on {name}", silent) as progress:
            found.append((name, run(jobs, one, progress)))
    return found


def _check_gangs(jobs: Sequence[TraceJob], what_if_nodes: int, gpus_per_node: int) -> None:
    largest = max(job.num_gpus for job in jobs)
    least = math.ceil(largest / gpus_per_node)
    if what_if_nodes < least:
        raise InputError(
            f"--what-if-nodes {what_if_nodes} has {what_if_nodes * gpus_per_node:,} GPUs, but a job of the trace needs "
            f"{largest:,}: give at least {many(least, 'node')}"
        )


@contextlib.contextmanager
def shown_progress(title: str, silent: bool) -> Iterator[Report | None]:
    """Show a progress bar on a terminal; its elapsed time also moves without reports. Show nothing elsewhere."""
    if silent or not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    console = Console(file=sys.stdout, highlight=False)
    with Progress(*columns, TaskProgressColumn(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
