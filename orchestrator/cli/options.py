"""What the commands of the queue share: their options, and how wide they may print."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated, Any, Final

import typer

from orchestrator.cli import completion as completing

YOURS: Final = "Runs of your own"
QUEUE: Final = "The queue"
CLUSTER: Final = "The cluster"

PATIENCE_S: Final = 20.0  # a command waits less long than a script for a server that starts again

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server [FLEETUNE_URL, or else the server of this machine]."),
]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id, or a unique start of it.", autocompletion=completing.ANY, show_default=False
    ),
]
OneTenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="NAME", help="Only this tenant's.", autocompletion=completing.tenant_names),
]


def job_ids(offered: completing.Offers) -> Any:
    """An argument of one id or more. `offered`: what is completed."""
    return typer.Argument(metavar="JOB", help="Ids, or unique starts.", autocompletion=offered, show_default=False)


def width() -> int | None:
    """Columns of the terminal; None where there is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
