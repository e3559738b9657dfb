"""What commands of the queue share: options and the width of the output."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated, Any, Final

import typer

from orchestrator.cli import completion as completing

YOURS: Final = "Runs of your own"
QUEUE: Final = "The queue"
CLUSTER: Final = "The cluster"

PATIENCE_S: Final = 20.0  # seconds; commands wait less than scripts for a server that restarts

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
    """Make an argument of one or more ids. `offered`: their completion."""
    return typer.Argument(metavar="JOB", help="Ids, or unique starts.", autocompletion=offered, show_default=False)


def width() -> int | None:
    """Return the columns of the terminal; None: stdout is not a terminal."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
