"""The command `fleetune upload`: copies files of this machine to storage that workers can read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Final

import typer

from cluster.text import byte_size, many
from jobs.spec.data import DATA_SUFFIXES
from jobs.storage import upload as uploading
from orchestrator.cli.options import Json, Quiet

LOGGED_EVERY_S: Final = 5.0  # seconds between lines of progress without a terminal


def upload(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or directory on this machine.")],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Destination: a URL that fsspec knows, or a path. With / at the end, PATH keeps its name.",
        ),
    ],
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite files that exist.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a model or data to where workers can read it.

    A file appears at its destination only when it is complete, and config.json is uploaded last. To continue an
    interrupted upload, repeat the command. At the end, the command prints the line for the spec.
    """
    plan = uploading.plan_upload(path, url, replace=replace)
    with progress_of(plan.bytes, quiet=json_ or quiet) as advance:
        uploading.upload(plan, advance)
    field, sent = spec_field(path), len(plan.sent)
    if json_:
        result = {"url": plan.target, "files": len(plan.files), "sent": sent, "bytes": plan.bytes, "field": field}
        typer.echo(json.dumps(result))
        return
    same = f", {len(plan.there)} were there already" if plan.there else ""
    typer.echo(f"{plan.target}: {sent} of {many(len(plan.files), 'file')} sent{same}")
    typer.echo(f"in the spec:  {field or 'model.path or data.train'}: {plan.target}")


@contextlib.contextmanager
def progress_of(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show progress in bytes on stderr: a bar on a terminal, else a line every few seconds.

    Yields the function to call with the number of bytes that were sent since its last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        done, printed_s = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, printed_s
            done += count
            bar.advance(task, count)
            if not (quiet or console.is_terminal) and time.monotonic() - printed_s >= LOGGED_EVERY_S:
                printed_s = time.monotonic()
                typer.echo(f"{byte_size(done)} of {byte_size(total)}", err=True)

        yield advance


def spec_field(path: str) -> str | None:
    """Return the field of a spec that takes this kind of file; None: it may be for several fields."""
    if os.path.isdir(path):
        return "model.path" if os.path.exists(os.path.join(path, "config.json")) else None
    return "data.train" if path.lower().endswith(DATA_SUFFIXES) else None
