"""Settings from the environment. This is the only file that reads it; all other code gets values."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster.errors import InputError

WITHOUT_SERVER = "none"  # as FLEETUNE_URL: runs start without the queue


@dataclass(frozen=True)
class TorchrunWorld:
    """The place of this process in a group that torchrun has started."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int = 1

    @property
    def is_one_node(self) -> bool:
        return self.local_world_size == self.world_size


def torchrun_world() -> TorchrunWorld | None:
    """Return this process's place under torchrun; None: torchrun has not started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return TorchrunWorld(*(int(os.environ[name]) for name in names))


def ray_address() -> str | None:
    """Return RAY_ADDRESS, which Ray sets for the driver of a submitted job; None: it is not set."""
    return os.environ.get("RAY_ADDRESS") or None


def storage_path(environ: Mapping[str, str] = os.environ) -> str:
    """Return FLEETUNE_STORAGE_PATH, or `runs` in the working directory: where commands look without --storage."""
    return environ.get("FLEETUNE_STORAGE_PATH") or "runs"


PROTOCOLS_VARIABLE = "FLEETUNE_PROTOCOLS"
# Protocols that read local files under another name, or wrap another URL. No setting can allow them.
_NEVER_PROTOCOLS = frozenset(
    {"local", "asynclocal", "asyncwrapper", "async_wrapper", "generic", "reference", "simplecache", "filecache"}
    | {"blockcache", "cached", "dir", "zip", "tar", "libarchive", "data"}
)


PROTOCOL: Final = re.compile(r"[a-z][a-z0-9+.-]*")  # of a URL, before ://


def extra_protocols(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Read FLEETUNE_PROTOCOLS: allowed protocols in addition to those of `jobs.storage.locations`, separated by commas.

    Raises:
        InputError: one of them can never be allowed.
    """
    given = environ.get(PROTOCOLS_VARIABLE, "")
    names = frozenset(name.strip().removesuffix("://") for name in given.split(",") if name.strip())
    for name in sorted(names):
        if name in _NEVER_PROTOCOLS or not PROTOCOL.fullmatch(name):
            raise InputError(
                f"{PROTOCOLS_VARIABLE} names {name!r}, which cannot be allowed: it is no protocol of a remote storage, "
                "or it wraps another one. Remove it"
            )
    return names


def protocols_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for a job's process on another machine, so that the same protocols are allowed there."""
    names = extra_protocols(environ)
    return {PROTOCOLS_VARIABLE: ",".join(sorted(names))} if names else {}


def set_default(name: str, value: str) -> None:
    """Set a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def expand_gpu_memory() -> None:
    """Make torch grow segments of GPU memory, instead of cutting them into pieces that no large tensor fits into.

    It must be called before this process first allocates memory on a GPU. It does not override the user's settings for
    torch's allocator.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def add_to_environment(added: Mapping[str, str]) -> None:
    """Set variables of this process and its children."""
    os.environ.update(added)


def add_to_path(folder: str) -> None:
    """Add a folder at the end of PATH, for this process and its children."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), folder])


def take_out(name: str) -> None:
    """Unset a variable of this process, so that its children do not inherit it."""
    os.environ.pop(name, None)


def visible_gpus() -> tuple[str, ...] | None:
    """Return the GPUs in CUDA_VISIBLE_DEVICES; None: it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else tuple(one.strip() for one in value.split(",") if one.strip())


def with_environment(added: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with added variables, for a child process.

    Secrets and the token of a server are left out.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_BACK)}
    return {**kept, **added}


_CA_FILE = "FLEETUNE_CA_FILE"


def ca_file() -> str | None:
    """Return FLEETUNE_CA_FILE or SSL_CERT_FILE, the trusted CA certificates. None: those of this machine."""
    return os.environ.get(_CA_FILE) or os.environ.get("SSL_CERT_FILE") or None


def ca_for_drivers() -> dict[str, str]:
    """Return the variable FLEETUNE_CA_FILE of a server, for the environment of its drivers."""
    path = os.environ.get(_CA_FILE)
    return {_CA_FILE: os.path.abspath(path)} if path else {}


SECRET_PREFIX = "FLEETUNE_SECRET_"
_KEPT_BACK = (SECRET_PREFIX, "FLEETUNE_TOKEN")


def fleetune_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return FLEETUNE_HOME, or ~/.fleetune: the folder of the token, and of the local server and its clients."""
    return Path(environ.get("FLEETUNE_HOME") or "~/.fleetune").expanduser().absolute()


def server_url() -> str | None:
    """Return FLEETUNE_URL, the URL of the queue's server, or WITHOUT_SERVER; None: it is not set."""
    return os.environ.get("FLEETUNE_URL") or None


def is_without_server(url: str | None) -> bool:
    """Whether a value of FLEETUNE_URL says that there is no server."""
    return (url or "").strip().lower() == WITHOUT_SERVER


def retention_days(environ: Mapping[str, str] = os.environ) -> float:
    """Read FLEETUNE_RETENTION_DAYS: how long a server keeps jobs after their end; 0: forever. Default: 90.

    Raises:
        InputError: it is not a number in this range.
    """
    text = environ.get("FLEETUNE_RETENTION_DAYS", "").strip()
    try:
        days = float(text or "90")
    except ValueError:
        days = -1.0
    if not 0.0 <= days <= 100_000.0:
        raise InputError(
            f"FLEETUNE_RETENTION_DAYS is {text[:40]!r}: set a number of days from 0 to 100000; 0 keeps all"
        )
    return days


def server_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return FLEETUNE_TOKEN, or the content of the file `token` in FLEETUNE_HOME; None: there is neither.

    Raises:
        InputError: other users can read the file.
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


def server_secrets() -> dict[str, str]:
    """Return the secrets that a server may give to jobs: NAME for each variable FLEETUNE_SECRET_NAME."""
    return {
        name.removeprefix(SECRET_PREFIX): value
        for name, value in os.environ.items()
        if name.startswith(SECRET_PREFIX) and name != SECRET_PREFIX
    }


DRIVER_TOKEN = "FLEETUNE_DRIVER_TOKEN"


@dataclass(frozen=True)
class DriverPlace:
    """The attempt that a driver leads, and the servers of its queue.

    Attributes:
        url: URL of the server that has started the driver.
        queue: id of the queue; '': a server of an older release has started the driver, and does not name its queue.
        other_urls: URLs of further servers of the queue, for when the first one does not answer.
    """

    url: str
    job_id: str
    attempt: int
    token: str
    queue: str = ""
    other_urls: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Return the variables that the driver is started with; `driver_place` reads them."""
        return {
            "FLEETUNE_URL": self.url,
            "FLEETUNE_JOB": self.job_id,
            "FLEETUNE_ATTEMPT": str(self.attempt),
            DRIVER_TOKEN: self.token,
            "FLEETUNE_QUEUE": self.queue,
            "FLEETUNE_OTHER_URLS": " ".join(self.other_urls),
        }


def driver_place(environ: Mapping[str, str] = os.environ) -> DriverPlace | None:
    """Read the place of this process from the variables that it was started with; None: it is not a driver."""
    values = [environ.get(f"FLEETUNE_{name}", "") for name in ("URL", "JOB", "ATTEMPT", "DRIVER_TOKEN")]
    url, job_id, attempt, token = values
    if not all(values) or not attempt.isdecimal() or int(attempt) < 1:
        return None
    others = tuple(environ.get("FLEETUNE_OTHER_URLS", "").split())
    return DriverPlace(url, job_id, int(attempt), token, environ.get("FLEETUNE_QUEUE", ""), others)


RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class RayJob:
    """A submitted job of a Ray cluster whose driver is this process, with the data given at its submission."""

    submission: str
    metadata: Mapping[str, str]
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)


def ray_job(environ: Mapping[str, str] = os.environ) -> RayJob | None:
    """Read the variable that Ray sets for drivers of submitted jobs; None: this process is not one."""
    try:
        given = json.loads(environ.get(RAY_JOB, ""))
        metadata = {str(key): str(value) for key, value in given["metadata"].items()}
        return RayJob(metadata["job_submission_id"], metadata, dict(given.get("runtime_env") or {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def webhook_order() -> tuple[str, str] | None:
    """Read FLEETUNE_WEBHOOK_URL and FLEETUNE_WEBHOOK_BODY (JSON); None: one of them is not set."""
    url, body = os.environ.get("FLEETUNE_WEBHOOK_URL"), os.environ.get("FLEETUNE_WEBHOOK_BODY")
    return (url, body) if url and body else None
