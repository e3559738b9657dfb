"""Names every file and directory that a run leaves; no other module forms these names."""

from __future__ import annotations

import datetime
import re
import secrets
from dataclasses import dataclass

from jobs.storage import files as storage


def new_run_name(name: str, now: datetime.datetime) -> str:
    """Return `{name}-{UTC date}-{time}-{4 hex digits}`, which sorts by time and needs no check for uniqueness."""
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
        """The resolved spec of the newest attempt, as JSON. Running it repeats the run."""
        return storage.join(self.root, "spec.json")

    @property
    def best(self) -> str:
        """The spec of the best trial; only in a sweep."""
        return storage.join(self.root, "best.json")

    def method(self, name: str) -> str:
        """The sweep of one method; only in a comparison."""
        return storage.join(self.root, "methods", name)

    @property
    def comparison(self) -> str:
        """The figures of all methods; only in a comparison."""
        return storage.join(self.root, "comparison.json")

    @property
    def comparison_page(self) -> str:
        return storage.join(self.root, "comparison.html")

    @property
    def manifest(self) -> str:
        """Versions, git revision, hosts, devices, data fingerprint and peak memory of the run."""
        return storage.join(self.root, "manifest.json")

    @property
    def outcome(self) -> str:
        """The outcome; absent while the run goes on."""
        return storage.join(self.root, "outcome.json")

    def earlier_spec(self, number: int) -> str:
        """The spec of the driver's attempt `number`, counted from 1, kept when the run is resumed."""
        return storage.join(self.root, f"spec-{number}.json")

    def earlier_manifest(self, number: int) -> str:
        return storage.join(self.root, f"manifest-{number}.json")

    def earlier_outcome(self, number: int) -> str:
        """The outcome of that attempt; absent if the attempt was killed."""
        return storage.join(self.root, f"outcome-{number}.json")

    @property
    def events(self) -> str:
        """Folder of numbered parts with one event a line, as JSON."""
        return storage.join(self.root, "events")

    @property
    def metrics(self) -> str:
        """Folder of numbered parts with one step a line, as JSON."""
        return storage.join(self.root, "metrics")

    @property
    def checkpoints(self) -> str:
        return storage.join(self.root, "checkpoints")

    @property
    def model(self) -> str:
        """The exported Hugging Face model directory."""
        return storage.join(self.root, "model")

    @property
    def merged(self) -> str:
        """The whole model that `fleetune export --merged` makes from an adapter and its base."""
        return storage.join(self.root, "merged")

    @property
    def logs(self) -> str:
        return storage.join(self.root, "logs")

    def log(self, who: str) -> str:
        """The log of `driver` or of `rank-0`, `rank-1` and so on."""
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
        """The start of one worker group: the step at which it starts, and its number of workers."""
        return storage.join(self.root, "attempts", f"{number:04d}.json")

    def failure(self, rank: int) -> str:
        """The failure of one rank, which the driver and the other ranks read."""
        return storage.join(self.root, "failures", f"rank-{rank}.json")

    @property
    def failures(self) -> str:
        return storage.join(self.root, "failures")

    @property
    def stop_request(self) -> str:
        """A file that asks the run to stop; its content is the reason."""
        return storage.join(self.root, "stop")

    @property
    def save_request(self) -> str:
        """A file that asks for a checkpoint; the run removes the file when it has seen it."""
        return storage.join(self.root, "save")

    @property
    def remedies(self) -> str:
        """The changes that the run made to itself after it ran out of memory; absent if there were none."""
        return storage.join(self.root, "remedies.json")

    @property
    def plan(self) -> str:
        """The newest plan of the run: its memory and time, and the fields that it chose; absent if none was made."""
        return storage.join(self.root, "plan.json")

    @property
    def driver(self) -> str:
        """A random id of the driver that has the run. Workers of an earlier driver see it change, and end."""
        return storage.join(self.root, "driver")

    @property
    def removing(self) -> str:
        """A marker written before the whole run is removed, and removed last: leftovers can then be recognised."""
        return storage.join(self.root, "removing.json")


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
    return storage.join(storage_path, "prepared", fingerprint)


def check_folder(storage_path: str, fingerprint: str) -> str:
    """Return the directory of `fleetune data check`. It is not a run, so it lies with the prepared data."""
    return storage.join(storage_path, "prepared", "checks", fingerprint)
