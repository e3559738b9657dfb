"""The commands `fleetune data ...`: check, prepare and show the data of a spec before using a GPU."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any, Literal

import typer

from cluster.text import many
from jobs.preflight.data_commands import check_data, generate_text, prepare_data, show_data
from jobs.run.paths import check_folder
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage import files as storage
from jobs.storage import strict_json
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.options import Address, Json, Quiet, Set, SpecFile, check_output_file, refuse_dashboard, width
from orchestrator.cli.output import progress_of
from orchestrator.pages import show as text
from orchestrator.pages.data import page, rows_json, rows_page
from orchestrator.pages.data_html import html as html_page

app = command_group(
    name="data",
    help="Check, prepare, show and generate the data of a spec.",
    epilog="Start here:  fleetune data check job.yaml  |  fleetune data show job.yaml --n 3",
    no_args_is_help=True,
)


@app.command(epilog="Example:  fleetune data check job.yaml --html report.html")
def check(
    spec: SpecFile,
    set_: Set = None,
    address: Address = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="File for the page [beside the prepared data].")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every sample, and report problems.

    The exit code is 2 if `prepare` would refuse the data. The page and the list of bad records are written beside the
    prepared data.
    """
    refuse_dashboard(address)
    loaded = load_spec(spec, set_ or [])
    check_output_file("--html", html, _inputs(spec, loaded))
    with closing(progress_of(quiet or json_)) as progress:
        report = check_data(loaded, address, progress)

    folder = check_folder(loaded.storage_path, report.fingerprint)
    where = html or storage.join(folder, "report.html")
    storage.write_bytes(where, html_page(report).encode())
    storage.write_bytes(storage.join(folder, "report.json"), report.model_dump_json(indent=1).encode())
    typer.echo(report.model_dump_json() if json_ else page(report, html=where, width=width() or 100))
    raise typer.Exit(2 if report.verdict == "errors" else 0)


def _inputs(file: str, spec: Spec) -> dict[str, str]:
    """Return what a spec reads, as `check_output_file` takes it."""
    sources = {source.path: f"the data of {where}" for where, source in spec.sources}
    return {file: "the spec itself", spec.model.path: "the model", **sources}


@app.command(epilog="Example:  fleetune data prepare job.yaml --address auto")
def prepare(
    spec: SpecFile, set_: Set = None, address: Address = None, json_: Json = False, quiet: Quiet = False
) -> None:
    """Tokenise, shuffle and pack, once for all runs.

    To continue an interrupted preparation, repeat the command. A run whose data is not prepared prepares it itself.
    """
    refuse_dashboard(address)
    loaded = load_spec(spec, set_ or [])
    with closing(progress_of(quiet or json_)) as progress:
        prepared = prepare_data(loaded, address, progress)
    manifest = prepared.manifest
    facts: dict[str, Any] = {"root": prepared.root, "fingerprint": manifest.fingerprint}
    facts |= {"records": manifest.records, "bad_rows": manifest.bad_rows}
    for name, parts in manifest.splits.items():
        counts = ("rows", "samples", "tokens", "targets", "longest_row")
        facts[name] = {
            count: (max if count == "longest_row" else sum)(getattr(part, count) for part in parts) for count in counts
        }
    typer.echo(strict_json.for_programs(facts) if json_ else text.prepared_page(facts, loaded))


@app.command(epilog="Example:  fleetune data show job.yaml --n 3 --split eval")
def show(
    spec: SpecFile,
    set_: Set = None,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="Number of rows to print.")] = 5,
    start: Annotated[int, typer.Option("--from", min=0, help="Number of the first row, from 0.")] = 0,
    split: Annotated[
        Literal["train", "eval"], typer.Option("--split", help="Training rows or held-out rows.")
    ] = "train",
    json_: Json = False,
) -> None:
    """Print rows as the model will see them.

    It shows text and tokens, which tokens are targets, and where the samples of a packed row begin. The data need not
    be prepared.
    """
    loaded = load_spec(spec, set_ or [])
    typer.echo("loading the tokenizer", err=True)  # this takes seconds
    rows = show_data(loaded, n, split, start, lambda text: typer.echo(f"warning: {text}", err=True))
    typer.echo(rows_json(rows) if json_ else rows_page(rows, colour=width() is not None))


@app.command(epilog="Example:  fleetune data generate job.yaml --to replay.jsonl --samples 2000")
def generate(
    spec: SpecFile,
    to: Annotated[str, typer.Option("--to", metavar="FILE", help="File to write, with a name that ends in .jsonl.")],
    set_: Set = None,
    samples: Annotated[int, typer.Option("--samples", min=1, max=10_000_000, help="Number of texts.")] = 1000,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, max=1_000_000, help="Longest text.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.05, max=5.0, help="Below 1: more likely texts.")
    ] = 1.0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let the base model write text, which a run can train on so that it forgets less.

    Use the file as a source of data.train with `format: text` and `replay: true`. The command uses a GPU if this
    machine has one. To continue an interrupted generation, repeat the command.
    """
    loaded = load_spec(spec, set_ or [])
    with closing(progress_of(quiet or json_)) as progress:
        drawn, path = generate_text(loaded, to, samples, max_tokens, temperature, progress)
    if json_:
        typer.echo(strict_json.for_programs({"path": path, "samples": samples, "drawn": drawn}))
    else:
        typer.echo(f"{many(samples, 'text')} in {path}" + ("" if drawn else ", generated before"))
