"""The one name-giver of everything that a run leaves behind."""

from __future__ import annotations

import datetime
import re
import secrets
from dataclasses import dataclass

from jobs.storage import files as storage


def new_run_name(name: str, now: datetime.datetime) -> str:
    """`{name}-{UTC date}-{time}-{4 hex digits}`: sorts by time, unique enough to be created without asking."""
    return f"{name}-{now.astimezone(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class JobPaths:
    """Names inside one run's directory (a local path or an fsspec URL)."""

    root: str

    @classmethod
    def of(cls, storage_path: str, run_name: str) -> JobPaths:
        return cls(storage.join(storage_path, run_name))

    @property
    def name(self) -> str:
        return self.root.rstrip("/").rsplit("/", 1)[-1]

    @property
    def spec(self) -> str:
        """The resolved spec of the newest attempt, as JSON: it reruns the same run."""
        return storage.join(self.root, "spec.json")

    @property
    def best(self) -> str:
        """In a sweep: the best trial's spec."""
        return storage.join(self.root, "best.json")

    @property
    def manifest(self) -> str:
        """What ran where: versions, git revision, hosts, devices, data fingerprint, peak memory."""
        return storage.join(self.root, "manifest.json")

    @property
    def outcome(self) -> str:
        """How it ended; not there while it goes on."""
        return storage.join(self.root, "outcome.json")

    def earlier_spec(self, number: int) -> str:
        """The spec of the driver's attempt `number`, from 1 on, once the run has gone on after it."""
        return storage.join(self.root, f"spec-{number}.json")

    def earlier_manifest(self, number: int) -> str:
        return storage.join(self.root, f"manifest-{number}.json")

    def earlier_outcome(self, number: int) -> str:
        """How that attempt ended; not there where it was killed."""
        return storage.join(self.root, f"outcome-{number}.json")

    @property
    def events(self) -> str:
        """Folder of numbered parts: what happened, one object a line."""
        return storage.join(self.root, "events")

    @property
    def metrics(self) -> str:
        """Folder of numbered parts: one object a step."""
        return storage.join(self.root, "metrics")

    @property
    def checkpoints(self) -> str:
        return storage.join(self.root, "checkpoints")

    @property
    def model(self) -> str:
        """The exported Hugging Face model directory."""
        return storage.join(self.root, "model")

    @property
    def logs(self) -> str:
        return storage.join(self.root, "logs")

    def log(self, who: str) -> str:
        """The log of `driver` or of `rank-0`, `rank-1` and so on."""
        return storage.join(self.logs, f"{who}.log")

    def checkpoint(self, step: int) -> str:
        return storage.join(self.checkpoints, checkpoint_name(step))

    def attempt(self, number: int) -> str:
        """What was decided for one worker group: the step at which it starts."""
        return storage.join(self.root, "attempts", f"{number:04d}.json")

    def failure(self, rank: int) -> str:
        """What one rank failed with; read by the driver and by the other ranks."""
        return storage.join(self.root, "failures", f"rank-{rank}.json")

    @property
    def failures(self) -> str:
        return storage.join(self.root, "failures")

    @property
    def stop_request(self) -> str:
        """Appears when somebody asks the run to stop; its content is the reason."""
        return storage.join(self.root, "stop")

    @property
    def save_request(self) -> str:
        """Appears when somebody asks for a checkpoint; the run removes it when it has seen it."""
        return storage.join(self.root, "save")

    @property
    def driver(self) -> str:
        """Which driver has the run: a word of its own. Workers of an earlier one end when they see another."""
        return storage.join(self.root, "driver")

    @property
    def removing(self) -> str:
        """Appears when the whole run is to go, before its spec does, and goes last: what is left can be told."""
        return storage.join(self.root, "removing.json")


_CHECKPOINT = re.compile(r"^step-(\d+)$")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint's name, or None if it is no such name."""
    match = _CHECKPOINT.match(name)
    return int(match.group(1)) if match else None


def prepared_root(storage_path: str, fingerprint: str) -> str:
    """Prepared data is shared by all runs with the same fingerprint."""
    return storage.join(storage_path, "prepared", fingerprint)


def check_folder(storage_path: str, fingerprint: str) -> str:
    """What `fleetune data check` leaves behind; not a run, so it lies with the prepared data."""
    return storage.join(storage_path, "prepared", "checks", fingerprint)
