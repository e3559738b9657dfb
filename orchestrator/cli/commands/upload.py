"""The command `fleetune upload`: copies files of this machine to storage that workers can read."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Annotated, Final

import typer

from cluster.text import duration
from orchestrator.cli.edge import Json, Quiet, edge

EPILOG = "Example:  fleetune upload ./llama s3://bucket/models/llama  |  fleetune upload train.jsonl /shared/data/"

DATA: Final = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".txt")
EVERY_S: Final = 5.0
EVERY_ON_TERMINAL_S: Final = 0.2


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

    The upload is complete or not there at all, as far as the storage allows. An interrupted one goes on when repeated.
    At the end, the line for the spec is printed.
    """
    with edge():
        from jobs.storage.upload import upload as carry_out
        from jobs.storage.upload_plan import plan_upload

        plan = plan_upload(path, url, replace=replace)
        progress = Progress(plan.bytes, sys.stderr.isatty(), lambda text: typer.echo(text, err=True, nl=False))
        carry_out(plan, (lambda count: None) if json_ or quiet else progress)
        if not (json_ or quiet):
            progress.end()
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


class Progress:
    """Progress in bytes: one line that is updated on a terminal, else a line every few seconds."""

    def __init__(
        self, total: int, terminal: bool, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._terminal, self._write, self._clock = total, terminal, write, clock
        self._sent, self._began_s = 0, clock()
        self._told_s = self._began_s
        self._has_told = False

    def __call__(self, count: int) -> None:
        self._sent += count
        now_s = self._clock()
        if now_s - self._told_s >= (EVERY_ON_TERMINAL_S if self._terminal else EVERY_S):
            self._told_s = now_s
            self._tell(now_s)

    def end(self) -> None:
        """Finish the line on a terminal."""
        if self._has_told and self._terminal:
            self._tell(self._clock())
            self._write("\n")

    def _tell(self, now_s: float) -> None:
        from cluster.text import byte_size

        rate = self._sent / max(now_s - self._began_s, 1e-9)
        left = f", {duration((self._total - self._sent) / rate)} left" if rate else ""
        line = f"{byte_size(self._sent)} of {byte_size(self._total)}, {byte_size(int(rate))}/s{left}"
        self._write(f"\r{line.ljust(60)}" if self._terminal else f"{line}\n")
        self._has_told = True
