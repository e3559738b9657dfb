"""The command `fleetune plan`: predicts what a job needs, without using a GPU."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from typing import Annotated

import typer

from cluster.errors import InputError
from jobs.comparison.checking import sweeps_to_plan
from jobs.planning.accelerators import Machines, gang_machines, machines_of
from jobs.planning.memory import COPIED, COPIED_BY_TRIALS
from jobs.planning.strategies import JobPlan
from jobs.run.find import storage_root
from jobs.run.outcome import event
from jobs.run.summary import plan_checks
from jobs.search.planned import Cost, cost_of
from jobs.search.rules.checking import checked_sweep
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import Loaded, finetune_spec, load_marked
from jobs.spec.sweep import SweepSpec
from orchestrator.cli.options import Json, Price, Set
from orchestrator.cli.output import progress_of
from orchestrator.client.spec_names import Named, place_errors
from orchestrator.pages.plan import accuracy_json, accuracy_page, plan_json, plan_page


def plan(
    spec: Annotated[str | None, typer.Argument(metavar="SPEC", help="YAML or JSON file, or its URL.")] = None,
    set_: Set = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="GPUS", help="GPUs to plan for: 8xH100-80, or 2x8xH100-80 for two nodes."),
    ] = None,
    host_memory: Annotated[
        float | None,
        typer.Option("--host-memory", min=1.0, metavar="GIB", help="Memory of a node [usual for these GPUs]."),
    ] = None,
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
        typer.echo(json.dumps(accuracy_json(checks)) if json_ else accuracy_page(checks))
        return
    if spec is None:
        raise InputError("give the spec of a job, or --accuracy for past runs")
    if host_memory is not None and on is None:
        raise InputError("--host-memory describes the nodes of --on: give --on too")
    machines = None if on is None else replace(machines_of(on), node_gib=host_memory)
    marked = load_marked(spec, set_ or [])
    jobs = _jobs_of(marked, spec)
    with closing(progress_of(json_, sys.stderr)) as progress:
        progress.event(event("phase", "tracing the model without weights", phase="plan"))
        planned = {name: _planned(job, sweep, machines) for name, (job, sweep) in jobs.items()}
    if json_:
        found = {name: plan_json(one, price, cost) for name, (one, _, cost) in planned.items()}
        typer.echo(json.dumps(found.get("", found)))
    else:
        pages = [
            (f"method {name}\n\n" if name else "") + plan_page(one, price, sweep, cost)
            for name, (one, sweep, cost) in planned.items()
        ]
        typer.echo("\n\n".join(pages))
    raise typer.Exit(0 if all(one.chosen is not None for one, _, _ in planned.values()) else 2)


def _jobs_of(marked: Loaded, path: str) -> dict[str, tuple[Spec, SweepSpec | None]]:
    """Return the jobs to plan, each with its sweep, by the method of a comparison; the only job has the name ""."""
    spec = marked.spec
    if isinstance(spec, CompareSpec):
        sweeps = sweeps_to_plan(spec)
    elif isinstance(spec, SweepSpec):
        with place_errors(Named(spec, path, marked.marks)):
            sweeps = {"": checked_sweep(spec)[0]}
    else:
        return {"": (finetune_spec(spec, path), None)}
    return {name: (sweep.base, sweep) for name, sweep in sweeps.items()}


def _planned(
    job: Spec, sweep: SweepSpec | None, machines: Machines | None
) -> tuple[JobPlan, SweepSpec | None, Cost | None]:
    """Return the plan of a job, its sweep, if it has one, and what the sweep's whole budget takes, if it is known."""
    from jobs.preflight.plan import plan_job

    gangs = 1
    if sweep is not None and machines is not None:
        machines, gangs = gang_machines(machines, job.resources.num_workers)
    plan = plan_job(job, machines, COPIED if sweep is None else COPIED_BY_TRIALS)
    return plan, sweep, None if sweep is None else _cost(sweep, plan, gangs)


def _cost(sweep: SweepSpec, plan: JobPlan, gangs: int) -> Cost | None:
    """Return what the whole budget takes; None: nothing fits, or the length of a run is not known yet."""
    option = plan.chosen
    if option is None or plan.total_steps is None:
        return None
    tokens = option.batching.rows * plan.seq_len
    devices = plan.machines.gpus * (sweep.base.resources.cpus_per_worker if plan.machines.is_cpu else 1)
    return cost_of(sweep, plan.total_steps, gangs, devices, option.time.seconds, tokens)
