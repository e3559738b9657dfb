"""The command `fleetune`. For a fast start, torch and ray are imported only when a command needs them."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable
from contextlib import closing
from typing import Annotated, Any, Literal

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from cluster.errors import InputError
from jobs.comparison.checking import checked_methods
from jobs.drivers.finetune.begin import load_work
from jobs.preflight.validate import CheckedCommand, Validated, no_gpu_here, validate_command
from jobs.preflight.validate import validate as check
from jobs.run import summary as run_list
from jobs.run.find import absolute, storage_root
from jobs.run.paths import JobPaths
from jobs.run.requests import ask_to_save, ask_to_stop
from jobs.search.rules.checking import check_sweep, checked_sweep, sweep_warnings
from jobs.search.rules.spec_text import format_prior, format_space, format_sweep, format_varied
from jobs.spec.command import CommandSpec
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import SPEC_MODELS, Loaded, finetune_spec, load_marked
from jobs.spec.sweep import SweepSpec
from jobs.storage import strict_json
from orchestrator.cli import completion as completing
from orchestrator.cli.commands import advise as advisecli
from orchestrator.cli.commands import cluster as clustercli
from orchestrator.cli.commands import data as datacli
from orchestrator.cli.commands import gc as gccli
from orchestrator.cli.commands import job_actions as actioncli
from orchestrator.cli.commands import plan as plancli
from orchestrator.cli.commands import queue as queuecli
from orchestrator.cli.commands import serve as servecli
from orchestrator.cli.commands import simulate as simulatecli
from orchestrator.cli.commands import submit as submitcli
from orchestrator.cli.commands import sweep as sweepcli
from orchestrator.cli.commands import tokens as tokenscli
from orchestrator.cli.commands import upload as uploadcli
from orchestrator.cli.help_groups import Grouped, command_group
from orchestrator.cli.options import (
    CLUSTER,
    QUEUE,
    YOURS,
    Address,
    Json,
    Price,
    Quiet,
    Set,
    SpecFile,
    Storage,
    refuse_dashboard,
)
from orchestrator.cli.output import echo_if_read, json_list, progress_of
from orchestrator.cli.run_argument import check_not_queued, run_meant, run_to_stop
from orchestrator.cli.run_here import ProgressWithRoot, as_ray_job, run_comparison_here, run_sweep_here
from orchestrator.client.spec_names import Named, place_errors
from orchestrator.pages import show as text

app = command_group(
    name="fleetune",
    cls=Grouped,
    help="Fine-tune Hugging Face models on a shared Ray cluster.",
    epilog="Start here:  fleetune run job.yaml  |  fleetune serve, and then  fleetune submit job.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _command(panel: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers a command in a panel of the help."""
    epilog = "Example:  " + "  |  ".join(f"fleetune {example}" for example in examples)
    return app.command(rich_help_panel=panel, epilog=epilog)


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run (or the start of it), its path or URL, or a job id.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fleetune {version('fleetune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@_command(
    YOURS,
    "run job.yaml --set train.learning_rate=1e-5",
    "run --resume rotten-20261124 --set resources.num_workers=4",
)
def run(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC", help="YAML or JSON file, or its URL. With --resume, the default is the run's spec."
        ),
    ] = None,
    set_: Set = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Continue an earlier run from its newest checkpoint."),
    ] = None,
    address: Address = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Start of the run's name.")] = None,
    price: Price = None,
    quiet: Quiet = False,
) -> None:
    """Train here, and show the progress. Paths are relative to the spec's file, also in --set."""
    overrides = [*(set_ or []), *([f"name={json.dumps(name)}"] if name is not None else [])]
    refuse_dashboard(address, lambda: as_ray_job(spec, overrides, resume))
    loaded, root = load_work(spec, overrides, resume)
    _check_price(price, loaded.kind)
    if root is not None:
        check_not_queued(root)
    if isinstance(loaded, SweepSpec):
        if spec is not None and resume is None:
            with place_errors(Named(loaded, spec, load_marked(spec, overrides).marks)):
                check_sweep(loaded)
        raise typer.Exit(run_sweep_here(loaded, root, address, quiet))
    if isinstance(loaded, CompareSpec):
        raise typer.Exit(run_comparison_here(loaded, root, address, quiet, price))
    with closing(ProgressWithRoot(progress_of(quiet))) as progress:
        from jobs.finetune import run_on_ray

        outcome = run_on_ray(loaded, address=address, progress=progress, resume=root)
    bound = loaded.remedies.forgetting.max_general_loss_increase
    if loaded.method.kind != "full":  # an adapter cannot be mixed with its base
        bound = math.inf
    echo_if_read(text.ending(outcome, progress.root, loaded.data.labels or (), told=not quiet, bound=bound))
    raise typer.Exit(outcome.exit_code)


@_command(YOURS, "validate job.yaml --set train.global_batch_size=64")
def validate(spec: SpecFile, set_: Set = None, json_: Json = False) -> None:
    """Check a spec without starting workers, and show its plan."""
    marked = load_marked(spec, set_ or [])
    if isinstance(marked.spec, CompareSpec):
        _validate_comparison(marked.spec, json_)
        return
    if isinstance(marked.spec, CommandSpec):
        with place_errors(Named(marked.spec, spec, marked.marks)):
            _validate_command(marked.spec, json_)
        return
    sweep, source, varied = None, None, dict[str, str]()
    if isinstance(marked.spec, SweepSpec):
        with place_errors(Named(marked.spec, spec, marked.marks)):
            sweep, source = checked_sweep(marked.spec)
        varied = format_varied(sweep)
        of_base = {name.removeprefix("base."): mark for name, mark in marked.marks.items() if name.startswith("base.")}
        marked = Loaded(sweep.base, of_base)
    loaded = finetune_spec(marked.spec, spec)
    with place_errors(Named(loaded, spec, marked.marks)):
        found = check(loaded, judged=None if sweep is None else sweep.judged)
    facts = text.plan(loaded, varied)
    if sweep is not None:
        space = f"{format_space(sweep)}{format_prior(sweep, source)}"
        facts = {"sweep": format_sweep(sweep), "space": space, **facts}
        found = dataclasses.replace(found, warnings=(*found.warnings, *sweep_warnings(sweep)))
    if json_:
        typer.echo(strict_json.for_programs(_checks_json(found, facts, loaded)))
        return
    typer.echo(text.validated_page(facts, found, no_gpu_here(loaded, "" if sweep is None else "base.")))


def _checks_json(found: Validated | CheckedCommand, plan: dict[str, str], spec: Spec | CommandSpec) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "plan": plan, "spec": spec.model_dump(mode="json")}


def _validate_command(spec: CommandSpec, as_json: bool) -> None:
    """Print the checks of a command. Raises InputError."""
    found, gang = validate_command(spec), spec.resources
    each = f"{gang.gpus_per_worker or 'no'} GPU, {gang.cpus_per_worker} CPU"
    facts = {"command": shlex.join(spec.command), "workers": f"{gang.num_workers} x ({each})"}
    facts |= {"env": ", ".join(spec.env)} if spec.env else {}
    facts |= {"after": ", ".join(spec.queue.after)} if spec.queue.after else {}
    typer.echo(
        strict_json.for_programs(_checks_json(found, facts, spec)) if as_json else text.validated_page(facts, found)
    )


def _validate_comparison(spec: CompareSpec, as_json: bool) -> None:
    """Print the checks of all methods. Raises InputError."""
    checked = checked_methods(spec)
    plans = {one.name: text.plan(one.sweep.base) for one in checked}
    if as_json:
        methods = {one.name: _checks_json(one.found, plans[one.name], one.sweep.base) for one in checked}
        typer.echo(strict_json.for_programs({"methods": methods}))
        return
    facts = {"sweeps": format_sweep(checked[0].sweep)}
    for one in checked:
        searched = f"{format_space(one.sweep)}{format_prior(one.sweep, one.prior_from)}"
        facts[one.name] = f"{plans[one.name]['method']}; {searched}"
    facts |= {name: said for name, said in plans[checked[0].name].items() if name not in ("method", "rate")}
    warnings = dict.fromkeys([*(said for one in checked for said in one.found.warnings), *sweep_warnings(spec)])
    found = dataclasses.replace(checked[0].found, warnings=tuple(warnings))
    typer.echo(text.validated_page(facts, found, no_gpu_here(spec.base, "base.")))


@_command(YOURS, "runs --storage s3://bucket/runs")
def runs(storage: Storage = None, json_: Json = False) -> None:
    """List the runs, newest last."""
    found = run_list.list_runs(storage_root(storage))
    if json_:
        typer.echo(json_list(found))
    elif found:
        typer.echo(text.runs_table(found, run_list.utc_now()))
    else:
        typer.echo(f"no runs under {storage_root(storage)}")


@_command(YOURS, "show rotten-20261124")
def show(run: RunArgument, storage: Storage = None, price: Price = None, json_: Json = False) -> None:
    """Show one run: status, metrics, paths, events, log.

    If the run failed, the end of its log follows. The table of a comparison has costs if --price is given here, or was
    given to its run.
    """
    if price is not None and json_:
        raise InputError("--price adds costs to the table of a comparison, which --json leaves out: drop one of them")
    details = run_list.describe_run(run_meant(run, storage_root(storage)))
    _check_price(price, details.spec.get("kind"))
    typer.echo(details.model_dump_json() if json_ else text.run_page(details))
    if not json_ and details.spec.get("kind") == "compare":
        from jobs.comparison.measured import comparison_so_far
        from jobs.comparison.page import comparison_text

        if (found := comparison_so_far(JobPaths(details.summary.root))) is not None:
            found = found if price is None else found.model_copy(update={"price": price})
            typer.echo(f"\n{comparison_text(found)}")


def _check_price(price: float | None, kind: str | None) -> None:
    """Raise InputError if a price is given and the kind of the spec has no table with costs."""
    if price is not None and kind != "compare":
        raise InputError("--price is for the table of a comparison. For what a job will cost: fleetune plan --price")


@_command(YOURS, "stop rotten-20261124")
def stop(run: RunArgument, storage: Storage = None) -> None:
    """Make a run save a checkpoint and end."""
    typer.echo(ask_to_stop(run_to_stop(run, storage_root(storage))))


@_command(YOURS, "save rotten-20261124")
def save(run: RunArgument, storage: Storage = None) -> None:
    """Make a run save a checkpoint and continue."""
    typer.echo(ask_to_save(run_meant(run, storage_root(storage))))


@_command(
    YOURS,
    "export rotten-20261124 --to ./rotten-model",
    "export rotten-20261124 --to ./mixed --base-weight 0.3",
)
def export(
    run: RunArgument,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Directory or URL for the model [model/ of the run].")
    ] = None,
    base_weight: Annotated[
        float | None,
        typer.Option(
            "--base-weight", metavar="W", min=0.0, max=1.0, help="Weight of the base model in a mix of both models."
        ),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Merge LoRA into its base model [into merged/].")] = False,
    storage: Storage = None,
) -> None:
    """Write a run's newest checkpoint as a model.

    The result is a directory that Hugging Face's from_pretrained reads. With --base-weight W, each weight is
    (1 - W) x trained weight + W x weight of the model that the run started from. A run with method lora or prompt
    gives an adapter, which peft.PeftModel.from_pretrained reads.
    """
    root = run_meant(run, storage_root(storage))
    if base_weight is not None and merged:
        raise InputError("--base-weight and --merged exclude each other: give one of them")
    if base_weight is not None and to is None:
        raise InputError("--base-weight needs --to DIR, because it does not replace the run's model")
    if to is not None and not to.strip():
        raise InputError("--to is empty: is a shell variable not set?")
    to = to and absolute(to)
    typer.echo(f"exporting {root}", err=True)  # importing torch takes seconds
    if base_weight is not None and to is not None:
        from jobs.training.checkpoint.interpolate import export_interpolated

        model = export_interpolated(root, to, base_weight, say=typer.echo)
    else:
        from jobs.training.checkpoint.to_model import export_run, merge_run

        model = (merge_run if merged else export_run)(root, to, say=typer.echo)
    typer.echo(f"model {model}")


@_command(YOURS, "spec | less", "spec --kind command")
def spec(
    kind: Annotated[
        Literal["finetune", "command", "sweep", "compare"], typer.Option("--kind", help="Kind of spec.")
    ] = "finetune",
    json_schema: Annotated[bool, typer.Option("--json-schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Print all fields of a spec: type, bounds, default, meaning."""
    schema = SPEC_MODELS[kind].model_json_schema()
    typer.echo(json.dumps(schema, indent=1) if json_schema else text.reference(kind))


app.add_typer(datacli.app, rich_help_panel=YOURS)
app.add_typer(sweepcli.app, rich_help_panel=YOURS)
_command(YOURS, "plan job.yaml --on 8xH100-80", "plan job.yaml --on 2x8xA100-80 --json")(plancli.plan)
_command(YOURS, "advise job.yaml --on 8xH100-80", "advise job.yaml --on 1xA10-24 --tasks 5")(advisecli.advise)
_command(YOURS, "upload ./llama s3://bucket/models/llama", "upload train.jsonl /shared/data/")(uploadcli.upload)
_command(
    YOURS,
    "gc --storage s3://bucket/runs --older-than 30d --keep-last 20 --dry-run",
    "gc --max-size 500GB --checkpoints-only",
)(gccli.gc)
_command(
    QUEUE,
    "submit job.yaml --set train.learning_rate=1e-5 --follow",
    "submit job.yaml --sweep train.learning_rate=1e-5,3e-5 --sweep train.warmup_ratio=0,0.1",
    "submit evaluate.yaml --after $(fleetune submit job.yaml)",
)(submitcli.submit)
_command(QUEUE, "queue", "queue --all --tenant vision --json")(queuecli.queue)
_command(QUEUE, "status rotten-k3f9")(queuecli.status)
_command(QUEUE, "logs rotten-k3f9 -f", "logs rotten-k3f9 --source rank-0 --tail 50")(queuecli.logs)
_command(QUEUE, "why rotten-k3f9")(queuecli.why)
_command(QUEUE, "cancel rotten-k3f9 rotten-p2x7")(actioncli.cancel)
_command(QUEUE, "pause rotten-k3f9")(actioncli.pause)
_command(QUEUE, "resume rotten-k3f9")(actioncli.resume)
_command(QUEUE, "retry rotten-k3f9")(actioncli.retry)
_command(CLUSTER, "release rotten-k3f9 --force")(actioncli.release)
_command(QUEUE, "priority rotten-k3f9 --to 10")(actioncli.priority)
_command(CLUSTER, "serve", "serve --address auto", "serve --host 0.0.0.0 --store postgresql://queue@db/queue")(
    servecli.serve
)
app.add_typer(tokenscli.app, rich_help_panel=CLUSTER)
_command(CLUSTER, "nodes")(clustercli.nodes)
_command(CLUSTER, 'cordon 3f9a --reason "fan is loud"')(clustercli.cordon)
_command(CLUSTER, "uncordon 3f9a")(clustercli.uncordon)
_command(CLUSTER, 'drain 3f9a --reason "new driver at noon"')(clustercli.drain)
app.add_typer(clustercli.tenants, rich_help_panel=CLUSTER)
_command(CLUSTER, "usage --month 2026-11")(clustercli.usage)
_command(CLUSTER, "events -f", "events --job rotten-k3f9")(clustercli.events)
_command(
    CLUSTER,
    "simulate trace.csv --nodes 64 --what-if-nodes 48 --report page.html",
    "simulate trace.csv --nodes 64 --policy easy --schedule schedule.csv",
)(simulatecli.simulate)
_command(CLUSTER, "completion bash >> ~/.bashrc")(completing.completion)


def main() -> None:
    completion_init()  # shells request completions through environment variables
    app(prog_name="fleetune")
