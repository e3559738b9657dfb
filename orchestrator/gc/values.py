"""Values of `fleetune gc`: findings, bounds and decisions. Times are seconds since 1970, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Goes(StrEnum):
    """How much of a run goes."""

    NOTHING = "nothing"
    CHECKPOINTS = "checkpoints"
    RUN = "run"


@dataclass(frozen=True)
class RunFacts:
    """A run, as described by its files.

    Attributes:
        status: as in `fleetune runs`.
        since_s: when it ended, or else when it was last heard.
        touched_s: when one of its files was last written.
        size, checkpoint_size: of all its files, and of those under checkpoints/.
        prepared: fingerprints of the data that it is trained on. A comparison has those of its methods, and a sweep
            also that of its final run.
        may_prepare: a part of it has begun, and the fingerprint of the data of that part is not known yet.
        starts_from: the run whose model it starts from, if that is one of the found runs.
    """

    name: str
    status: str
    since_s: float
    touched_s: float
    size: int
    checkpoint_size: int
    prepared: frozenset[str] = frozenset()
    may_prepare: bool = False
    starts_from: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "failed", "interrupted")

    def size_of(self, goes: Goes) -> int:
        """Return the size of the part that goes."""
        return {Goes.NOTHING: 0, Goes.CHECKPOINTS: self.checkpoint_size, Goes.RUN: self.size}[goes]


@dataclass(frozen=True)
class PreparedFacts:
    """A directory of prepared data, or a report about data.

    Attributes:
        sources: fingerprints of the directories that this one is made of.
        lease_s: last sign of life of a process that prepares it; None: there is none.
    """

    name: str
    touched_s: float
    size: int
    sources: frozenset[str] = frozenset()
    lease_s: float | None = None


@dataclass(frozen=True)
class Leftover:
    """A run whose removal an earlier `gc` has begun. It has no spec any more."""

    name: str
    size: int


@dataclass(frozen=True)
class Found:
    """Everything under a storage path. `other_size`: size of other files, which are never touched."""

    runs: tuple[RunFacts, ...]
    prepared: tuple[PreparedFacts, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    other_size: int = 0

    @property
    def size(self) -> int:
        """Total size of what is counted: runs and prepared data."""
        return (
            sum(run.size for run in self.runs)
            + sum(one.size for one in self.prepared)
            + sum(one.size for one in self.leftovers)
        )


@dataclass(frozen=True)
class Bounds:
    """The user's bounds. `keep_last`: number of newest runs that stay as they are; not a bound by itself."""

    older_than_s: float | None = None
    most_size: int | None = None
    keep_last: int = 0
    checkpoints_only: bool = False
    prepared: bool = False

    @property
    def any(self) -> bool:
        return self.older_than_s is not None or self.most_size is not None


@dataclass(frozen=True)
class Held:
    """Runs that are needed, by name, with the reason.

    Attributes:
        wholly: nothing of these runs goes.
        models: these runs stay, except for their checkpoints.
    """

    wholly: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def why(self, run: str) -> str:
        return self.wholly.get(run) or self.models.get(run) or ""


@dataclass(frozen=True)
class RunVerdict:
    run: RunFacts
    goes: Goes
    why: str

    @property
    def freed(self) -> int:
        return self.run.size_of(self.goes)


@dataclass(frozen=True)
class PreparedVerdict:
    prepared: PreparedFacts
    goes: bool
    why: str

    @property
    def freed(self) -> int:
        return self.prepared.size if self.goes else 0


@dataclass(frozen=True)
class GcPlan:
    """What goes and what stays, oldest first."""

    runs: tuple[RunVerdict, ...]
    prepared: tuple[PreparedVerdict, ...]
    leftovers: tuple[Leftover, ...]
    size: int
    most_size: int | None

    @property
    def freed(self) -> int:
        runs, prepared = sum(run.freed for run in self.runs), sum(one.freed for one in self.prepared)
        return runs + prepared + sum(one.size for one in self.leftovers)

    @property
    def left(self) -> int:
        return self.size - self.freed

    @property
    def over(self) -> int:
        """Bytes by which the remaining size exceeds the bound."""
        return max(self.left - self.most_size, 0) if self.most_size is not None else 0
