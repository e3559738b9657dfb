"""What several commands share: options, the connection to the server, and the width of the output."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.errors import SpecError
from orchestrator.cli import completion as completing

if TYPE_CHECKING:
    from orchestrator.client.connection import Connection

YOURS: Final = "Specs, data and runs"
QUEUE: Final = "The queue"
CLUSTER: Final = "The cluster"

PATIENCE_S: Final = 20.0  # seconds; commands wait less than scripts for a server that restarts

SpecFile = Annotated[str, typer.Argument(metavar="SPEC", help="YAML or JSON file, or its URL.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, e.g. train.learning_rate=1e-5; repeatable."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDR", help="Address of a Ray cluster: auto, or HOST:6379 [RAY_ADDRESS]."),
]
Storage = Annotated[
    str | None,
    typer.Option("--storage", metavar="PATH", help="Directory or URL of runs [FLEETUNE_STORAGE_PATH, else ./runs]."),
]
Price = Annotated[float | None, typer.Option("--price", min=0.0, metavar="X", help="Price of one GPU for one hour.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="URL of the server [FLEETUNE_URL, else the server on this machine]."),
]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Job id, or the start of it if that is unique.",
        autocompletion=completing.ANY,
        show_default=False,
    ),
]
OneTenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="NAME", help="Show only this tenant.", autocompletion=completing.tenant_names),
]


def job_ids(offered: completing.Offers) -> Any:
    """Make an argument of one or more ids. `offered`: their completion."""
    return typer.Argument(
        metavar="JOB", help="Job ids, or unique starts of them.", autocompletion=offered, show_default=False
    )


def refuse_dashboard(address: str | None, arguments: list[str]) -> None:
    """Raise SpecError if the address is Ray's dashboard. `arguments`: of the same run as a Ray job."""
    if address is not None and address.startswith(("http://", "https://")):
        raise SpecError(
            f"--address {address} is Ray's dashboard, but this command connects to the cluster itself. Give the "
            "cluster's address (auto, or HOST:6379), or submit the run as a Ray job:\n"
            f"  ray job submit --address {address} --working-dir . -- python -m jobs.finetune " + " ".join(arguments)
        )


@contextlib.contextmanager
def connected(url: str | None, patience_s: float = PATIENCE_S) -> Iterator[Connection]:
    """Connect to the server as `orchestrator.client.discovery.connected` does, which takes long to import."""
    from orchestrator.client.discovery import connected

    with connected(url, patience_s) as server:
        yield server


def width() -> int | None:
    """Return the columns of the terminal; None: stdout is not a terminal."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
