"""Names the files and directories of runs and of prepared data. `fleetune gc` removes by these names.

Only the files that processes exchange as messages, and those inside prepared data, are named where they are written.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from jobs.storage import files as storage

PREPARED: Final = "prepared"  # the directory of a storage path that is no run
PREPARED_MANIFEST: Final = "manifest.json"  # the marker that makes a directory of prepared data exist; written last
PREPARING: Final = "preparing.json"  # the lock of the process that prepares the data
CHECKS: Final = "checks"  # holds the reports of `fleetune data check`, among the prepared data
METHODS: Final = "methods"  # holds a sweep for each method of a comparison
FINAL_RUN: Final = re.compile(r"final(?:-\d+)?")  # names of the final runs in a sweep

_TIME: Final = "%Y%m%d-%H%M%S"
_RUN_NAME: Final = re.compile(r".+-(\d{8}-\d{6})-[0-9a-f]{4}")
_BEGUN_NAME: Final = re.compile(r"(.+)-[0-9]{8}(-[0-9a-f-]*)?")


def new_run_name(name: str, now: datetime.datetime) -> str:
    """Return `{name}-{UTC date}-{time}-{4 hex digits}`, which sorts by time and needs no check for uniqueness."""
    return f"{name}-{now.astimezone(datetime.UTC):{_TIME}}-{secrets.token_hex(2)}"


def time_in_name(run_name: str) -> datetime.datetime | None:
    """Return the time in the name of a run; None if the run was renamed."""
    match = _RUN_NAME.fullmatch(run_name)
    with contextlib.suppress(ValueError):
        return match and datetime.datetime.strptime(match[1], _TIME).replace(tzinfo=datetime.UTC)
    return None


def job_in_name(text: str) -> str | None:
    """Return the name of the job in the name of a run, or in a beginning of it that has the date; None: it is none."""
    match = _BEGUN_NAME.fullmatch(text)
    return match and match[1]


def rank_name(rank: int) -> str:
    """Return the name of a rank, as its log, its failure and its metrics have it."""
    return f"rank-{rank}"


class _Path:
    """A path inside a run's directory, as an attribute of `JobPaths`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: JobPaths, kind: type[JobPaths]) -> str:
        return storage.join(paths.root, self._name)


@dataclass(frozen=True)
class JobPaths:
    """Names inside one run's directory (a local path or an fsspec URL)."""

    root: str

    spec = _Path("spec.json")  # the resolved spec of the newest attempt, as JSON; running it repeats the run
    best = _Path("best.json")  # the spec of the best trial; only in a sweep
    comparison = _Path("comparison.json")  # the figures of all methods; only in a comparison
    comparison_page = _Path("comparison.html")
    manifest = _Path("manifest.json")  # versions, git revision, hosts, devices, data fingerprint and peak memory
    outcome = _Path("outcome.json")  # absent while the run goes on
    events = _Path("events")  # folder of numbered parts with one event a line, as JSON
    metrics = _Path("metrics")  # folder of numbered parts with one step a line, as JSON
    checkpoints = _Path("checkpoints")
    model = _Path("model")  # the exported Hugging Face model directory
    merged = _Path("merged")  # the whole model that `fleetune export --merged` makes from an adapter and its base
    logs = _Path("logs")
    failures = _Path("failures")
    stop_request = _Path("stop")  # a file that asks the run to stop; its content is the reason
    save_request = _Path("save")  # a file that asks for a checkpoint; the run removes it when it has seen it
    remedies = _Path("remedies.json")  # the changes that the run made after it ran out of memory; absent without any
    plan = _Path("plan.json")  # the newest plan: memory, time, and the fields that it chose; absent if none was made
    # A random id of the driver that has the run. Workers of an earlier driver see it change, and end.
    driver = _Path("driver")
    ledger = _Path("ledger")  # folder of numbered parts with what became of the trials; only in a sweep
    drivers = _Path("drivers")  # holds a directory for each driver; only in a sweep
    gangs = _Path("gangs")  # holds a directory in the layout of a run for each gang; only in that of a driver
    probe = _Path("probe")  # the run that looks for the greatest learning rate; only in the directory of a driver
    # A marker written before the whole run is removed, and removed last: leftovers can then be recognised.
    removing = _Path("removing.json")

    @classmethod
    def of(cls, storage_path: str, run_name: str) -> JobPaths:
        return cls(storage.join(storage_path, run_name))

    @property
    def name(self) -> str:
        return self.root.rstrip("/").rsplit("/", 1)[-1]

    def method(self, name: str) -> str:
        """The sweep of one method; only in a comparison."""
        return storage.join(self.root, METHODS, name)

    def trial(self, number: int) -> JobPaths:
        """A trial, counted from 1; only in a sweep."""
        return JobPaths(storage.join(self.root, f"{number:04d}"))

    def final(self, number: int) -> JobPaths:
        """A final run, counted from 1; only in a sweep."""
        return JobPaths(storage.join(self.root, "final" if number == 1 else f"final-{number}"))

    def earlier(self, kind: Literal["spec", "manifest", "outcome"], number: int) -> str:
        """A file of the driver's attempt `number`, counted from 1, kept when the run is resumed.

        An attempt that was killed has no outcome.
        """
        return storage.join(self.root, f"{kind}-{number}.json")

    def log(self, who: str) -> str:
        """The log of `driver`, or of a rank by its `rank_name`."""
        return storage.join(self.logs, f"{who}.log")

    def checkpoint(self, step: int) -> str:
        return storage.join(self.checkpoints, f"step-{step:08d}")

    @property
    def set_aside(self) -> JobPaths:
        """Holds the best checkpoint from before the run began again at its start, in the layout of a run.

        It lies among the checkpoints, so that it is removed with them.
        """
        return JobPaths(storage.join(self.checkpoints, "set-aside"))

    def attempt(self, number: int) -> str:
        """The start of one worker group: its first step and number of workers, and the checkpoints it passed over."""
        return storage.join(self.root, "attempts", f"{number:04d}.json")

    def failure(self, rank: int) -> str:
        """The failure of one rank, which the driver and the other ranks read."""
        return storage.join(self.failures, f"{rank_name(rank)}.json")


def comparison_root(sweep: str) -> str | None:
    """Return the root of the comparison that this root of a sweep belongs to, by its path alone; None: to none."""
    folder, _, method = sweep.rstrip("/").rpartition("/")
    root = folder.removesuffix(f"/{METHODS}")
    return root if root != folder and method else None


def made_from(model: str) -> str:
    """Return the file in `model` or `merged` that tells from which checkpoint or export `fleetune export` made it.

    Its content is that of `jobs.run.find.export_source`. A model that the run itself has exported has no such file.
    """
    return storage.join(model, "made_from")


_CHECKPOINT = re.compile(r"^step-(\d+)$")


def checkpoint_step(name: str) -> int | None:
    """Return the step in a checkpoint's name; None for any other name."""
    match = _CHECKPOINT.match(name)
    return int(match.group(1)) if match else None


def prepared_root(storage_path: str, fingerprint: str) -> str:
    """Return the directory of prepared data, which all runs with this fingerprint share."""
    return storage.join(storage_path, PREPARED, fingerprint)


def check_folder(storage_path: str, fingerprint: str) -> str:
    """Return the directory of `fleetune data check`. It is not a run, so it lies with the prepared data."""
    return storage.join(storage_path, PREPARED, CHECKS, fingerprint)
