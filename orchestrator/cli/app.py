"""The command `fleetune`. It starts fast: torch and ray are not imported before a run starts."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Annotated, Any, Literal

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from jobs.comparison.checking import checked_methods
from jobs.drivers.finetune.begin import load_work
from jobs.errors import InputError
from jobs.preflight.devices import no_gpu_here
from jobs.preflight.validate import validate as check
from jobs.run import requests as orders
from jobs.run import summary as run_list
from jobs.run.find import storage_root
from jobs.run.paths import JobPaths
from jobs.search.rules.checking import check_sweep, checked_sweep
from jobs.search.rules.spec_text import prior_words, space_words, sweep_words, varied_words
from jobs.spec.compare import CompareSpec
from jobs.spec.load import SPEC_MODELS, Loaded, finetune_spec, load_marked
from jobs.spec.sweep import SweepSpec
from orchestrator.cli import completion as completing
from orchestrator.cli.commands import advise as advisecli
from orchestrator.cli.commands import cluster as clustercli
from orchestrator.cli.commands import data as datacli
from orchestrator.cli.commands import gc as gccli
from orchestrator.cli.commands import job_actions as ordercli
from orchestrator.cli.commands import plan as plancli
from orchestrator.cli.commands import queue as queuecli
from orchestrator.cli.commands import serve as servecli
from orchestrator.cli.commands import simulate as simulatecli
from orchestrator.cli.commands import submit as submitcli
from orchestrator.cli.commands import sweep_change as sweepchangecli
from orchestrator.cli.commands import upload as uploadcli
from orchestrator.cli.edge import (
    Address,
    Json,
    Quiet,
    Set,
    SpecFile,
    Storage,
    edge,
    json_list,
    progress_of,
    refuse_dashboard,
)
from orchestrator.cli.help_groups import Grouped, command_group
from orchestrator.cli.meant import run_meant, run_to_stop
from orchestrator.cli.options import CLUSTER, QUEUE, YOURS
from orchestrator.cli.sweep_reading import Rooted, run_comparison_here, run_sweep_here
from orchestrator.client.spec_names import Named, about
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


@app.command(
    rich_help_panel=YOURS,
    epilog="Example:  fleetune run job.yaml --set train.learning_rate=1e-5  |  "
    "fleetune run --resume rotten-20261124 --set resources.num_workers=4",
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
    quiet: Quiet = False,
) -> None:
    """Train here, and show the progress. All paths are relative to the spec's file, even in --set."""
    with edge():
        refuse_dashboard(address, [*([spec] if spec else []), *(["--resume", resume] if resume else [])])
        overrides = [*(set_ or []), *([f"name={json.dumps(name)}"] if name is not None else [])]
        loaded, root = load_work(spec, overrides, resume)
        if isinstance(loaded, SweepSpec):
            if spec is not None and resume is None:
                with about(Named(loaded, spec, load_marked(spec, overrides).marks)):
                    check_sweep(loaded)
            raise typer.Exit(run_sweep_here(loaded, root, address, quiet))
        if isinstance(loaded, CompareSpec):
            raise typer.Exit(run_comparison_here(loaded, root, address, quiet))
        progress = Rooted(progress_of(quiet))
        from jobs.finetune import run_on_ray

        try:
            outcome = run_on_ray(loaded, address=address, progress=progress, resume=root)
        finally:
            progress.close()
        bound = loaded.remedies.forgetting.max_general_loss_increase
        if loaded.method.kind != "full":  # an adapter cannot be mixed with its base
            bound = math.inf
        typer.echo(text.ending(outcome, progress.root, loaded.data.labels or (), told=not quiet, bound=bound))
        raise typer.Exit(outcome.exit_code)


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune validate job.yaml --set train.global_batch_size=64")
def validate(spec: SpecFile, set_: Set = None, json_: Json = False) -> None:
    """Check a spec without starting workers, and show its plan."""
    with edge():
        marked = load_marked(spec, set_ or [])
        if isinstance(marked.spec, CompareSpec):
            _validate_comparison(marked.spec, json_)
            return
        sweep, source, varied = None, None, dict[str, str]()
        if isinstance(marked.spec, SweepSpec):
            with about(Named(marked.spec, spec, marked.marks)):
                sweep, source = checked_sweep(marked.spec)
            varied = varied_words(sweep)
            of_base = {
                name.removeprefix("base."): mark for name, mark in marked.marks.items() if name.startswith("base.")
            }
            marked = Loaded(sweep.base, of_base)
        loaded = finetune_spec(marked.spec, spec)
        with about(Named(loaded, spec, marked.marks)):
            found = check(loaded)
        facts = text.plan(loaded, varied)
        if sweep is not None:
            space = f"{space_words(sweep)}{prior_words(sweep, source)}"
            facts = {"sweep": sweep_words(sweep), "space": space, **facts}
        if json_:
            report = {**dataclasses.asdict(found), "plan": facts, "spec": loaded.model_dump(mode="json")}
            typer.echo(json.dumps(report))
            return
        typer.echo(text.validated_page(facts, found, no_gpu_here(loaded)))


def _validate_comparison(spec: CompareSpec, as_json: bool) -> None:
    """Print the checks of all methods. Raises InputError."""
    checked = checked_methods(spec)
    plans = {one.name: text.plan(one.sweep.base) for one in checked}
    if as_json:
        methods = {
            one.name: {
                **dataclasses.asdict(one.found),
                "plan": plans[one.name],
                "spec": one.sweep.base.model_dump(mode="json"),
            }
            for one in checked
        }
        typer.echo(json.dumps({"methods": methods}))
        return
    facts = {"sweeps": sweep_words(checked[0].sweep)}
    for one in checked:
        searched = f"{space_words(one.sweep)}{prior_words(one.sweep, one.prior_from)}"
        facts[one.name] = f"{plans[one.name]['method']}; {searched}"
    facts |= {name: said for name, said in plans[checked[0].name].items() if name not in ("method", "rate")}
    warnings = dict.fromkeys(warning for one in checked for warning in one.found.warnings)
    found = dataclasses.replace(checked[0].found, warnings=tuple(warnings))
    typer.echo(text.validated_page(facts, found, no_gpu_here(spec.base)))


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune runs --storage s3://bucket/runs")
def runs(storage: Storage = None, json_: Json = False) -> None:
    """List the runs, newest last."""
    with edge():
        found = run_list.list_runs(storage_root(storage))
        if json_:
            typer.echo(json_list(found))
        elif found:
            typer.echo(text.runs_table(found, run_list.utc_now()))
        else:
            typer.echo(f"no runs under {storage_root(storage)}")


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune show rotten-20261124")
def show(run: RunArgument, storage: Storage = None, json_: Json = False) -> None:
    """Show one run: status, metrics, paths, events, log.

    If the run failed, the end of its log follows.
    """
    with edge():
        details = run_list.describe_run(run_meant(run, storage_root(storage)))
        typer.echo(details.model_dump_json() if json_ else text.run_page(details))
        if not json_ and details.spec.get("kind") == "compare":
            from jobs.comparison.measured import read_comparison
            from jobs.comparison.page import comparison_text

            if (found := read_comparison(JobPaths(details.summary.root))) is not None:
                typer.echo(f"\n{comparison_text(found)}")


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune stop rotten-20261124")
def stop(run: RunArgument, storage: Storage = None) -> None:
    """Make a run save a checkpoint and end."""
    with edge():
        typer.echo(orders.ask_to_stop(run_to_stop(run, storage_root(storage))))


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune save rotten-20261124")
def save(run: RunArgument, storage: Storage = None) -> None:
    """Make a run save a checkpoint and continue."""
    with edge():
        typer.echo(orders.ask_to_save(run_meant(run, storage_root(storage))))


@app.command(
    rich_help_panel=YOURS,
    epilog="Example:  fleetune export rotten-20261124 --to ./rotten-model  |  "
    "fleetune export rotten-20261124 --to ./mixed --base-weight 0.3",
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
    with edge():
        root = run_meant(run, storage_root(storage))
        if base_weight is not None and to is None:
            raise InputError("--base-weight needs --to DIR, because it does not replace the run's model")
        typer.echo(f"exporting {root}", err=True)  # importing torch takes seconds
        if base_weight is not None and to is not None:
            if merged:
                raise InputError("--base-weight and --merged exclude each other: give one of them")
            from jobs.training.checkpoint.interpolate import export_interpolated

            typer.echo(f"model {export_interpolated(root, to, base_weight, say=typer.echo)}")
            return
        from jobs.training.checkpoint.to_model import export_run, merge_run

        typer.echo(f"model {(merge_run if merged else export_run)(root, to, say=typer.echo)}")


@app.command(rich_help_panel=YOURS, epilog="Example:  fleetune spec | less  |  fleetune spec --kind command")
def spec(
    kind: Annotated[
        Literal["finetune", "command", "sweep", "compare"], typer.Option("--kind", help="Kind of spec.")
    ] = "finetune",
    json_schema: Annotated[bool, typer.Option("--json-schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Print all fields of a spec: type, bounds, default, meaning."""
    with edge():
        schema = SPEC_MODELS[kind].model_json_schema()
        typer.echo(json.dumps(schema, indent=1) if json_schema else text.reference(kind))


def _add(command: Any, panel: str, *examples: str) -> None:
    """Register a command that is defined in another file."""
    epilog = "Example:  " + "  |  ".join(f"fleetune {example}" for example in examples)
    app.command(rich_help_panel=panel, epilog=epilog)(command)


app.add_typer(datacli.app, rich_help_panel=YOURS)
app.add_typer(sweepchangecli.app, rich_help_panel=YOURS)
app.command(rich_help_panel=YOURS, epilog=plancli.EPILOG)(plancli.plan)
app.command(rich_help_panel=YOURS, epilog=advisecli.EPILOG)(advisecli.advise)
app.command(rich_help_panel=YOURS, epilog=uploadcli.EPILOG)(uploadcli.upload)
app.command(rich_help_panel=YOURS, epilog=gccli.EPILOG)(gccli.gc)
app.command(rich_help_panel=QUEUE, epilog=submitcli.EPILOG)(submitcli.submit)
_add(queuecli.queue, QUEUE, "queue", "queue --all --tenant vision --json")
_add(queuecli.status, QUEUE, "status rotten-k3f9")
_add(queuecli.logs, QUEUE, "logs rotten-k3f9 -f", "logs rotten-k3f9 --source rank-0 --tail 50")
_add(queuecli.why, QUEUE, "why rotten-k3f9")
_add(ordercli.cancel, QUEUE, "cancel rotten-k3f9 rotten-p2x7")
_add(ordercli.pause, QUEUE, "pause rotten-k3f9")
_add(ordercli.resume, QUEUE, "resume rotten-k3f9")
_add(ordercli.retry, QUEUE, "retry rotten-k3f9")
_add(ordercli.release, CLUSTER, "release rotten-k3f9 --force")
_add(ordercli.priority, QUEUE, "priority rotten-k3f9 --to 10")
_add(
    servecli.serve, CLUSTER, "serve", "serve --address auto", "serve --host 0.0.0.0 --store postgresql://queue@db/queue"
)
app.add_typer(servecli.tokens, rich_help_panel=CLUSTER)
_add(clustercli.nodes, CLUSTER, "nodes")
_add(clustercli.cordon, CLUSTER, 'cordon 3f9a --reason "fan is loud"')
_add(clustercli.uncordon, CLUSTER, "uncordon 3f9a")
_add(clustercli.drain, CLUSTER, 'drain 3f9a --reason "new driver at noon"')
app.add_typer(clustercli.tenants, rich_help_panel=CLUSTER)
_add(clustercli.usage, CLUSTER, "usage --month 2026-11")
_add(clustercli.events, CLUSTER, "events -f", "events --job rotten-k3f9")
app.command(rich_help_panel=CLUSTER, epilog=simulatecli.EPILOG)(simulatecli.simulate)
_add(completing.completion, CLUSTER, "completion bash >> ~/.bashrc")


def main() -> None:
    completion_init()  # shells request completions through environment variables
    app(prog_name="fleetune")
