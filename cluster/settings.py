"""The only file that reads the environment. Everybody else is given values."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import InputError


@dataclass(frozen=True)
class TorchrunWorld:
    """Where torchrun has put this process."""

    rank: int
    world_size: int
    local_rank: int


def torchrun_world() -> TorchrunWorld | None:
    """This process's place under torchrun, or None when torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return TorchrunWorld(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


def ray_address() -> str | None:
    """RAY_ADDRESS, which Ray sets for the driver of a submitted job; None where there is none."""
    return os.environ.get("RAY_ADDRESS") or None


@dataclass(frozen=True)
class Settings:
    """What the surroundings say, as opposed to a spec or an option."""

    storage_path: str = "runs"  # where `fleetune runs`, `show` and `export` look when --storage is left out


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """FLEETUNE_STORAGE_PATH, or `runs` under the working directory."""
    return Settings(storage_path=environ.get("FLEETUNE_STORAGE_PATH") or "runs")


PROTOCOLS_VARIABLE = "FLEETUNE_PROTOCOLS"
# These read local files under another name, or wrap another URL. No setting allows them.
_NEVER_PROTOCOLS = frozenset(
    {"local", "asynclocal", "asyncwrapper", "async_wrapper", "generic", "reference", "simplecache", "filecache"}
    | {"blockcache", "cached", "dir", "zip", "tar", "libarchive", "data"}
)


def extra_protocols(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """FLEETUNE_PROTOCOLS: protocols that are allowed beside those of `jobs.storage.locations`, separated by commas.

    Raises:
        InputError: one of them can never be allowed.
    """
    given = environ.get(PROTOCOLS_VARIABLE, "")
    names = frozenset(name.strip().removesuffix("://") for name in given.split(",") if name.strip())
    for name in sorted(names):
        if name in _NEVER_PROTOCOLS or not re.fullmatch(r"[a-z][a-z0-9+.-]*", name):
            raise InputError(
                f"{PROTOCOLS_VARIABLE} names {name!r}, which cannot be allowed: it is no protocol of a remote storage, "
                "or it wraps another one. Remove it"
            )
    return names


def protocols_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process of a job on another machine is started with, so that the same protocols are allowed there."""
    names = extra_protocols(environ)
    return {PROTOCOLS_VARIABLE: ",".join(sorted(names))} if names else {}


def set_default(name: str, value: str) -> None:
    """Set a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def expand_gpu_memory() -> None:
    """Have torch grow segments of GPU memory instead of cutting them, which leaves gaps that no large tensor fits into.

    Takes effect until this process first allocates on a GPU. What the user has set for torch's allocator stays.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def add_to_environment(added: Mapping[str, str]) -> None:
    """Set variables of this process, and of what it starts."""
    os.environ.update(added)


def take_out(name: str) -> None:
    """Unset a variable of this process, so that what it starts does not see it."""
    os.environ.pop(name, None)


def visible_gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """What CUDA_VISIBLE_DEVICES leaves to this process; None where it is not set."""
    value = environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else tuple(one.strip() for one in value.split(",") if one.strip())


def with_environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and more: what a program of this machine is started with.

    What a server keeps for itself and for jobs that name it stays behind.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_BACK)}
    return {**kept, **added}


_CA_FILE = "FLEETUNE_CA_FILE"


def ca_file(environ: Mapping[str, str] = os.environ) -> str | None:
    """FLEETUNE_CA_FILE, or SSL_CERT_FILE: the certificates that servers are trusted by. None: those of this machine."""
    return environ.get(_CA_FILE) or environ.get("SSL_CERT_FILE") or None


def ca_for_drivers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """FLEETUNE_CA_FILE of a server, for the environment of the drivers that it starts."""
    path = environ.get(_CA_FILE)
    return {_CA_FILE: os.path.abspath(path)} if path else {}


SECRET_PREFIX = "FLEETUNE_SECRET_"
_KEPT_BACK = (SECRET_PREFIX, "FLEETUNE_TOKEN")


def fleetune_home(environ: Mapping[str, str] = os.environ) -> Path:
    """FLEETUNE_HOME, or ~/.fleetune: the token, and what a server of this machine and its clients keep."""
    return Path(environ.get("FLEETUNE_HOME") or "~/.fleetune").expanduser().absolute()


def server_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """FLEETUNE_URL, of the queue's server; None where it is not set."""
    return environ.get("FLEETUNE_URL") or None


RETENTION_DAYS = 90.0


def retention_days(environ: Mapping[str, str] = os.environ) -> float:
    """FLEETUNE_RETENTION_DAYS: how long a server keeps jobs after their end; 0: for ever. 90 where it is not set.

    Raises:
        InputError: it is no such number.
    """
    text = environ.get("FLEETUNE_RETENTION_DAYS", "").strip()
    try:
        days = float(text) if text else RETENTION_DAYS
    except ValueError:
        days = -1.0
    if not 0.0 <= days <= 100_000.0:
        raise InputError(
            f"FLEETUNE_RETENTION_DAYS is {text[:40]!r}: set a number of days from 0 to 100000; 0 keeps all"
        )
    return days


def server_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """FLEETUNE_TOKEN, or what the file `token` of FLEETUNE_HOME has; None where there is neither.

    Raises:
        InputError: others may read that file.
    """
    if token := environ.get("FLEETUNE_TOKEN", "").strip():
        return token
    path = fleetune_home(environ) / "token"
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise InputError(f"{path} may be read by others (mode {mode:04o}): chmod 600 {path}")
            return file.read(1000).strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def server_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a server may give to jobs that name it: NAME for each FLEETUNE_SECRET_NAME."""
    return {
        name.removeprefix(SECRET_PREFIX): value
        for name, value in environ.items()
        if name.startswith(SECRET_PREFIX) and name != SECRET_PREFIX
    }


DRIVER_TOKEN = "FLEETUNE_DRIVER_TOKEN"


@dataclass(frozen=True)
class DriverPlace:
    """Which attempt of which job a driver is, and where its queue is served.

    Attributes:
        url: of the server that has started the driver.
        queue: id of the queue; '': a server of an older release has started the driver, and does not name its queue.
        other_urls: of further servers of the queue, which are asked when the first one does not answer.
    """

    url: str
    job_id: str
    attempt: int
    token: str
    queue: str = ""
    other_urls: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """What the driver is started with; `driver_place` reads it."""
        return {
            "FLEETUNE_URL": self.url,
            "FLEETUNE_JOB": self.job_id,
            "FLEETUNE_ATTEMPT": str(self.attempt),
            DRIVER_TOKEN: self.token,
            "FLEETUNE_QUEUE": self.queue,
            "FLEETUNE_OTHER_URLS": " ".join(self.other_urls),
        }


def driver_place(environ: Mapping[str, str] = os.environ) -> DriverPlace | None:
    """Where this process is the driver of a queued job, from the variables that it was started with; else None."""
    values = [environ.get(f"FLEETUNE_{name}", "") for name in ("URL", "JOB", "ATTEMPT", "DRIVER_TOKEN")]
    url, job_id, attempt, token = values
    if not all(values) or not attempt.isdecimal() or int(attempt) < 1:
        return None
    others = tuple(environ.get("FLEETUNE_OTHER_URLS", "").split())
    return DriverPlace(url, job_id, int(attempt), token, environ.get("FLEETUNE_QUEUE", ""), others)


RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class RayJob:
    """Which submitted job of a Ray cluster this process is the driver of, and what was said of it at submission."""

    submission: str
    metadata: Mapping[str, str]
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)


def ray_job(environ: Mapping[str, str] = os.environ) -> RayJob | None:
    """From the variable that Ray starts drivers of submitted jobs with; None: this process is none."""
    try:
        given = json.loads(environ.get(RAY_JOB, ""))
        metadata = {str(key): str(value) for key, value in given["metadata"].items()}
        return RayJob(metadata["job_submission_id"], metadata, dict(given.get("runtime_env") or {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class WebhookOrder:
    """What `jobs.webhook` is to send, and where to."""

    url: str
    body: str


def webhook_order(environ: Mapping[str, str] = os.environ) -> WebhookOrder | None:
    """FLEETUNE_WEBHOOK_URL and FLEETUNE_WEBHOOK_BODY (JSON); None where one of them is not set."""
    url, body = environ.get("FLEETUNE_WEBHOOK_URL"), environ.get("FLEETUNE_WEBHOOK_BODY")
    return None if not url or not body else WebhookOrder(url, body)
