"""Names made of others: ids of jobs, their attempts and logs, locks of clients. Only this module forms them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CLIENTS: Final = "clients"  # the folder of the clients' locks
OUTPUT: Final = "output"  # the log of the newest attempt's output; it starts anew with each attempt


def new_job_id(name: str, drawn: str) -> str:
    """Make the id of a job: `tuning-3kx9v2`. `drawn`: random characters."""
    return f"{name}-{drawn}"


def name_of(job_id: str) -> str:
    """Return the name of a job: `tuning` for `tuning-3kx9v2`."""
    return job_id.rpartition("-")[0]


def submission_of(job_id: str, attempt: int) -> str:
    """Return the name of an attempt's program in the backend: `tuning-3kx9v2-1`. It makes a second start impossible."""
    return f"{job_id}-{attempt}"


def job_of(submission: str) -> str:
    """Return the id of the job whose attempt a program is; that of a program of others is no job's."""
    return submission.rpartition("-")[0]


def client_lock(home: Path, client: str) -> Path:
    """Return the file that a client keeps locked while it lives. `home`: FLEETUNE_HOME."""
    return home / CLIENTS / f"{client}.lock"


def output_of(attempt: int) -> str:
    """Return the name of the log of an attempt's output, which is valid for the newest attempt, too."""
    return f"{OUTPUT}-{attempt}"
