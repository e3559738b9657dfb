"""The command `fleetune upload`: copies files of this machine to storage that workers can read."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Final

import typer

from orchestrator.cli.edge import Json, Quiet, edge

EPILOG = "Example:  fleetune upload ./llama s3://bucket/models/llama  |  fleetune upload train.jsonl /shared/data/"

DATA: Final = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".txt")
LOGGED_EVERY_S: Final = 5.0  # progress, if it is not shown on a terminal


def upload(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory of this machine.")],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Its place: a URL that fsspec knows, or a path. With / at the end: under it."
        ),
    ],
    replace: Annotated[bool, typer.Option("--replace", help="Write over what is there under the same names.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a model or data to where workers can read it.

    Each file appears whole, and config.json last. An interrupted upload goes on when it is repeated. At the end, the
    line for the spec is printed.
    """
    with edge():
        from tqdm import tqdm

        from jobs.storage import upload as uploading

        plan = uploading.plan_upload(path, url, replace=replace)
        every_s = 0.1 if sys.stderr.isatty() else LOGGED_EVERY_S
        with tqdm(total=plan.bytes, unit="B", unit_scale=True, mininterval=every_s, disable=json_ or quiet) as bar:
            uploading.upload(plan, bar.update)
        field, sent = spec_field(path), len(plan.sent)
        if json_:
            told = {"url": plan.target, "files": len(plan.files), "sent": sent, "bytes": plan.bytes, "field": field}
            typer.echo(json.dumps(told))
            return
        same = f", {len(plan.there)} were there already" if plan.there else ""
        typer.echo(f"{plan.target}: {sent} of {len(plan.files)} files sent{same}")
        typer.echo(f"in the spec:  {field or 'model.path or data.train'}: {plan.target}")


def spec_field(path: str) -> str | None:
    """Return the field of a spec that takes this kind of file; None: several are possible."""
    if os.path.isdir(path):
        return "model.path" if os.path.exists(os.path.join(path, "config.json")) else None
    return "data.train" if path.lower().endswith(DATA) else None
