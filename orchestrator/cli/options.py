"""What several commands share: options, durations and sizes, the connection to the server, and the output's width."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cluster.errors import InputError, SpecError
from cluster.settings import is_without_server, server_url
from jobs.planning.accelerators import Machines, machines_of
from orchestrator.cli import completion as completing

if TYPE_CHECKING:
    from orchestrator.client.connection import Connection

YOURS: Final = "Specs, data and runs"
QUEUE: Final = "The queue"
CLUSTER: Final = "The cluster"

PATIENCE_S: Final = 20.0  # seconds; commands wait less than scripts for a server that restarts

_DURATION: Final = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])$")
_SECONDS: Final[Mapping[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE = re.compile(r"^([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([KMGTP])(i?))?B$", re.IGNORECASE)
_POWERS: Final[Mapping[str, int]] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def finite(value: float | None) -> float | None:
    """Refuse infinity and NaN, which pass the check of a range."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


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
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="GPUS", help="GPUs to plan for: 8xH100-80, or 2x8xH100-80 for two nodes [the spec's]."
    ),
]
HostMemory = Annotated[
    float | None,
    typer.Option(
        "--host-memory",
        min=1.0,
        metavar="GIB",
        help="Memory of a node of --on [usual for these GPUs].",
        callback=finite,
    ),
]
Price = Annotated[
    float | None,
    typer.Option("--price", min=0.0, metavar="X", help="Price of one GPU for one hour.", callback=finite),
]
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


def machines_on(on: str | None, host_memory: float | None) -> Machines | None:
    """Return the machines that --on and --host-memory describe; None if --on is not given.

    Raises:
        InputError: --on cannot be read, or --host-memory is given without it.
    """
    if on is None:
        if host_memory is not None:
            raise InputError("--host-memory describes the nodes of --on: give --on too")
        return None
    return dataclasses.replace(machines_of(on), node_gib=host_memory)


def job_ids(offered: completing.Offers) -> Any:
    """Make an argument of one or more ids. `offered`: their completion."""
    return typer.Argument(
        metavar="JOB", help="Job ids, or unique starts of them.", autocompletion=offered, show_default=False
    )


def duration_s(option: str, text: str, *, or_zero: bool = False) -> float:
    """Parse a duration to seconds, above 0 unless `or_zero`. Raises InputError."""
    match = _DURATION.match(text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match is not None else -1.0
    if seconds == 0.0 and not or_zero:
        raise InputError(f"{option} must be longer than 0, but is {text!r}")
    if seconds < 0.0:
        raise InputError(f"{option} {text!r} is not a duration: give a number and s, m, h, d or w, as in 12h or 30d")
    return seconds


def size_bytes(text: str) -> int:
    """Parse a size such as `500GB` (powers of 1000) or `500GiB` (of 1024), to bytes. Raises InputError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InputError(f"--max-size {text!r} is not a size: give a number and B, kB, MB, GB, TB or GiB, as in 500GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])


def refuse_dashboard(address: str | None, ray_job: Callable[[], Sequence[str] | None] = lambda: None) -> None:
    """Raise SpecError if the address is Ray's dashboard.

    Args:
        ray_job: returns module and arguments of a Ray job that does the same; None: no such job exists.
    """
    if address is None or not address.startswith(("http://", "https://")):
        return
    said = (
        f"--address {address} is Ray's dashboard, but this command connects to the cluster itself. Give the "
        "cluster's address (auto, or HOST:6379)"
    )
    if (arguments := ray_job()) is not None:
        said += (
            ", or submit the run as a Ray job:\n"
            f"  ray job submit --address {address} --working-dir . -- python -m {shlex.join(arguments)}"
        )
    raise SpecError(said)


def check_output_file(option: str, target: str | None, inputs: Mapping[str, str]) -> None:
    """Check a file to write before the work begins; None: no file is written.

    Args:
        inputs: what each file or directory is that must not be overwritten, by path or URL.

    Raises:
        InputError: it cannot be a file, or it would overwrite an input.
    """
    if target is None:
        return
    if "://" not in target:
        folder = os.path.dirname(os.path.realpath(target))
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.basename(target) or os.path.isdir(target):
            raise InputError(f"{option} {target!r} is not the name of a file: give one")
        if not os.path.isdir(folder):
            raise InputError(f"{option} {target} cannot be written: {folder} is not a directory")
    for path, what in inputs.items():
        if same_file(target, path):
            raise InputError(f"{option} {target} is {what}: give another file")
        if is_below(target, path):
            raise InputError(f"{option} {target} is in {what}: give a file elsewhere")


def same_file(one: str, other: str) -> bool:
    """Whether two paths or URLs refer to the same file, however they are written."""
    return _place(one) == _place(other)


def is_below(target: str, path: str) -> bool:
    """Whether a path or URL lies in a directory, or is one of the files that a pattern such as `data/*.csv` names."""
    place, other = _place(target), _place(path)
    is_pattern = any(character in other for character in "*?[")
    return place.startswith(f"{other.rstrip('/')}/") or (is_pattern and fnmatch.fnmatchcase(place, other))


def _place(path: str) -> str:
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    return path if "://" in path else os.path.realpath(path)


@contextlib.contextmanager
def connected(url: str | None, patience_s: float = PATIENCE_S) -> Iterator[Connection]:
    """Connect to the server. `orchestrator.client.discovery` takes long to import, so only a caller imports it.

    Raises:
        InputError: FLEETUNE_URL names no server, or the URL is empty.
    """
    from orchestrator.client.discovery import connected

    if url is not None and not url.strip():  # the server of this machine may be another one
        raise InputError("--url is empty: is a shell variable not set?")
    if url is None and is_without_server(server_url()):
        raise InputError(
            "FLEETUNE_URL is none, which starts runs without the queue, so this command has no server: give --url, or "
            "unset FLEETUNE_URL"
        )
    with connected(url, patience_s) as server:
        yield server


def width() -> int | None:
    """Return the columns of the terminal; None: stdout is not a terminal."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: it is closed
    return shutil.get_terminal_size((100, 24)).columns if is_terminal else None
