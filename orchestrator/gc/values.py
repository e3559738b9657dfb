"""Values of `fleetune gc`: findings, bounds and decisions. Times are seconds since 1970, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ToRemove(StrEnum):
    """The part of a run to remove."""

    NOTHING = "nothing"
    CHECKPOINTS = "checkpoints"
    RUN = "run"


@dataclass(frozen=True)
class RunFacts:
    """A run, as described by its files.

    Attributes:
        status: as in `fleetune runs`.
        since_s: when it ended; for a run without an end, when it last wrote.
        touched_s: when one of its files was last written.
        size, checkpoint_size: of all its files, and of its checkpoints; of a search, those of all its runs.
        prepared: fingerprints of its training data; of a comparison, also of its methods, and of a sweep, also of its
            final run.
        may_prepare: it has begun, but the fingerprint of some of its data is not known yet.
        starts_from: the run whose model it starts from, if that is one of the found runs.
        needs_base: it is of no use without that model: it has trained an adapter, or may be resumed.
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
    needs_base: bool = False

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "failed", "interrupted")

    def size_of(self, part: ToRemove) -> int:
        return {ToRemove.NOTHING: 0, ToRemove.CHECKPOINTS: self.checkpoint_size, ToRemove.RUN: self.size}[part]


@dataclass(frozen=True)
class PreparedFacts:
    """A directory of prepared data, or a report about data.

    Attributes:
        sources: fingerprints of the directories that it refers to.
        lease_s: when a process that prepares it last renewed its lease; None: there is none.
    """

    name: str
    touched_s: float
    size: int
    sources: frozenset[str] = frozenset()
    lease_s: float | None = None


@dataclass(frozen=True)
class Leftover:
    """A run that an interrupted `gc` has removed in part. It has no spec any more."""

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
        every: tuple[RunFacts | PreparedFacts | Leftover, ...] = (*self.runs, *self.prepared, *self.leftovers)
        return sum(one.size for one in every)


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
        wholly: runs of which nothing is removed.
        models: runs of which at most the checkpoints are removed.
    """

    wholly: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunVerdict:
    run: RunFacts
    to_remove: ToRemove
    why: str

    @property
    def freed(self) -> int:
        return self.run.size_of(self.to_remove)


@dataclass(frozen=True)
class PreparedVerdict:
    prepared: PreparedFacts
    to_remove: bool
    why: str

    @property
    def freed(self) -> int:
        return self.prepared.size if self.to_remove else 0


@dataclass(frozen=True)
class GcPlan:
    """What is removed and what is kept, oldest first."""

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
