"""What the commands of the queue share: their options, and how wide they may print."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated, Final

import typer

from orchestrator.cli.completing import job_ids

YOURS: Final = "Runs of your own"
QUEUE: Final = "The queue"
CLUSTER: Final = "The cluster"

PATIENCE_S: Final = 20.0  # a command waits less long than a script for a server that starts again

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server [FLEETUNE_URL, or else the server of this machine]."),
]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Id, or a unique start of it.", autocompletion=job_ids, show_default=False)
]
JobIds = Annotated[
    list[str],
    typer.Argument(metavar="JOB", help="Ids, or unique starts.", autocompletion=job_ids, show_default=False),
]


def width() -> int | None:
    """Columns of the terminal; None where there is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
