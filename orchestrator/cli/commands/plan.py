"""The command `fleetune plan`: predicts what a job needs, without using a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Annotated

import typer

from cluster.errors import InputError
from jobs.comparison.checking import sweeps_to_plan
from jobs.planning.accelerators import Machines, gang_machines
from jobs.planning.memory import COPIED_BY_TRIALS
from jobs.planning.strategies import JobPlan
from jobs.run.find import storage_root
from jobs.run.outcome import event
from jobs.run.summary import plan_checks
from jobs.search.planned import Cost, PlannedTrials, cost_of
from jobs.search.rules.budget import most_gangs
from jobs.search.rules.checking import checked_sweep
from jobs.search.rules.varying import engines, trial_spec
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Planned, Spec
from jobs.spec.load import Loaded, finetune_spec, load_marked
from jobs.spec.sweep import SweepSpec
from jobs.storage import strict_json
from orchestrator.cli.options import HostMemory, Json, On, Price, Set, machines_on
from orchestrator.cli.output import progress_of
from orchestrator.client.spec_names import Named, place_errors
from orchestrator.pages.plan import accuracy_json, accuracy_page, plan_json, plan_page


def plan(
    spec: Annotated[str | None, typer.Argument(metavar="SPEC", help="YAML or JSON file, or its URL.")] = None,
    set_: Set = None,
    on: On = None,
    host_memory: HostMemory = None,
    price: Price = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Compare predictions for past runs with what was measured.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", metavar="PATH", help="Directory of past runs [the spec's, or FLEETUNE_STORAGE_PATH]."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Predict memory and time of a job, and choose how to train it.

    No weights are read and nothing is started. The plan chooses the fields that the spec leaves out: the micro-batch
    (if the global batch is given), gradient checkpointing, and ZeRO.
    """
    if accuracy:
        if spec is not None and storage is None:
            storage = finetune_spec(load_marked(spec, set_ or []).spec, spec).storage_path
        checks = plan_checks(storage_root(storage))
        typer.echo(strict_json.for_programs(accuracy_json(checks)) if json_ else accuracy_page(checks))
        return
    if spec is None:
        raise InputError("give the spec of a job, or --accuracy for past runs")
    machines = machines_on(on, host_memory)
    marked = load_marked(spec, set_ or [])
    jobs = list(_jobs_of(marked, spec))
    with closing(progress_of(json_, sys.stderr)) as progress:
        progress.event(event("phase", "tracing the model without weights", phase="plan"))
        plans = [_planned(job, machines) for job in jobs]
    if json_:
        found = {job.name: plan_json(plan, price, trials) for job, (plan, trials) in zip(jobs, plans, strict=True)}
        typer.echo(strict_json.for_programs(found.get("", found)))
    else:
        pages = (plan_page(plan, price, trials, job.title) for job, (plan, trials) in zip(jobs, plans, strict=True))
        typer.echo("\n\n".join(pages))
    raise typer.Exit(0 if all(plan.chosen is not None for plan, _ in plans) else 2)


@dataclass(frozen=True)
class _Job:
    """A job that has a plan of its own.

    Attributes:
        spec: the values of a trial, if those of the engine vary.
        name: for programs; "" if there is one job.
        title: for people.
        sweep: whose trials are planned.
        varies: whether other trials have other engines. Then no field is chosen, in the sweep itself either.
    """

    spec: Spec
    name: str = ""
    title: str = ""
    sweep: SweepSpec | None = None
    varies: bool = False


def _jobs_of(marked: Loaded, path: str) -> Iterator[_Job]:
    spec = marked.spec
    if isinstance(spec, CompareSpec):
        for name, sweep in sweeps_to_plan(spec).items():
            yield from _jobs_of_sweep(sweep, name, f"method {name}")
    elif isinstance(spec, SweepSpec):
        with place_errors(Named(spec, path, marked.marks)):
            yield from _jobs_of_sweep(checked_sweep(spec)[0])
    else:
        yield _Job(finetune_spec(spec, path))


def _jobs_of_sweep(sweep: SweepSpec, name: str = "", title: str = "") -> Iterator[_Job]:
    """Yield a job for each of the sweep's engines."""
    for engine in engines(sweep):
        if engine:
            own = ", ".join(f"{field} {value}" for field, value in engine.items())
            names, titles = filter(None, (name, own)), filter(None, (title, f"trials with {own}"))
            yield _Job(trial_spec(sweep.base, engine), ", ".join(names), ", ".join(titles), sweep, True)
        else:
            yield _Job(sweep.base, name, title, sweep)


def _planned(job: _Job, machines: Machines | None) -> tuple[JobPlan, PlannedTrials | None]:
    from jobs.preflight.plan import machines_for, plan_job
    from jobs.preflight.validate import enter_working_dir

    with suppress(InputError):  # the user's functions, from which prepared data is found, are in it
        enter_working_dir(job.spec)
    sweep, resources = job.sweep, job.spec.resources
    if sweep is None:
        return plan_job(job.spec, machines), None
    gangs = most = most_gangs(sweep)
    if machines is not None:
        machines, gangs = gang_machines(machines, resources.num_workers)
    elif not resources.gpus_per_worker:
        gangs = (os.cpu_count() or 1) // (resources.num_workers * resources.cpus_per_worker)
    gangs = max(1, min(gangs, most))
    if machines is None:
        machines = machines_for(job.spec, gangs)
    choosable = frozenset[Planned]() if job.varies else None
    plan = plan_job(job.spec, machines, COPIED_BY_TRIALS, choosable, counts_tokens=sweep.budget.tokens is not None)
    return plan, PlannedTrials(sweep, gangs, None if job.varies else _cost(sweep, plan, gangs))


def _cost(sweep: SweepSpec, plan: JobPlan, gangs: int) -> Cost | None:
    """Return what the whole budget takes; None: nothing fits, or the length of a run is not known yet."""
    option = plan.chosen
    if option is None or plan.total_steps is None or (sweep.budget.tokens is not None and plan.run_tokens is None):
        return None
    tokens = plan.run_tokens or plan.total_steps * option.batching.rows * plan.seq_len
    devices = plan.machines.gpus * (sweep.base.resources.cpus_per_worker if plan.machines.is_cpu else 1)
    return cost_of(sweep, plan.total_steps, gangs, devices, option.time.seconds, tokens)
