"""The command `fleetune plan`: what a job takes, before a GPU is spent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from jobs.errors import InputError
from jobs.planning.accelerators import machines_of
from jobs.spec.load import load_marked, load_sweep, training
from orchestrator.cli.edge import Json, Set, SpecFile, edge
from orchestrator.pages.plan import plan_json, plan_page

EPILOG = "Example:  fleetune plan job.yaml --on 8xH100-80  |  fleetune plan job.yaml --on 2x8xA100-80 --json"


def plan(
    spec: SpecFile,
    set_: Set = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="GPUS", help="On which GPUs: 8xH100-80, or with nodes 2x8xH100-80."),
    ] = None,
    host_memory: Annotated[
        float | None,
        typer.Option("--host-memory", min=1.0, metavar="GIB", help="Memory of a node [what is usual with such GPUs]."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, metavar="X", help="Price of one GPU for one hour.")
    ] = None,
    json_: Json = False,
) -> None:
    """Predict memory and time of a job, and choose how to train it.

    No weights are read and nothing is started. Fields that the spec leaves out are chosen: the micro-batch (with a
    given global batch), gradient checkpointing, and ZeRO.
    """
    with edge():
        if host_memory is not None and on is None:
            raise InputError("--host-memory is of the nodes that --on names: give --on too")
        machines = None if on is None else replace(machines_of(on), node_gib=host_memory)
        sweep = load_sweep(spec, set_ or [])
        loaded = training(sweep.base if sweep is not None else load_marked(spec, set_ or []).spec, spec)
        if not json_:
            typer.echo("tracing the model without weights", err=True)  # importing torch takes seconds
        from jobs.preflight.plan import plan_job

        found = plan_job(loaded, machines)
        typer.echo(json.dumps(plan_json(found, price)) if json_ else plan_page(found, price))
        raise typer.Exit(0 if found.chosen is not None else 2)
