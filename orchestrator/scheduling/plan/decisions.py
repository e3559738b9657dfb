"""What a plan says is to be done. Values only; `row` is the job's in the snapshot's table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.capacity.occupancy import Placement


class Cause(StrEnum):
    """Why a running job is interrupted."""

    PREEMPTED = "preempted"  # another job goes first
    RECLAIMED = "reclaimed"  # what it had was lent, and its owner wants it back
    MOVED = "moved"  # makes whole nodes; it starts elsewhere at once
    MAINTENANCE = "maintenance"  # its nodes are about to be serviced
    RESIZED = "resized"  # it goes on at once with fewer workers, for another, or with more


@dataclass(frozen=True)
class Interrupt:
    row: int
    cause: Cause
    for_row: int | None  # the job that gets the room


@dataclass(frozen=True)
class Start:
    row: int
    placement: Placement  # (node, workers)


@dataclass(frozen=True)
class Moved:
    """Jobs to interrupt, where each of them starts again, and where the gang goes."""

    victims: tuple[int, ...]
    elsewhere: tuple[tuple[int, Placement], ...]
    placement: Placement


@dataclass(frozen=True)
class Reservation:
    """From `at_s` on these nodes are for this job; others may use them only until then."""

    row: int
    nodes: tuple[int, ...]
    at_s: float


@dataclass(frozen=True)
class Plan:
    """In the order in which it is to be carried out: interruptions come before the starts that need them."""

    decisions: tuple[Interrupt | Start, ...]
    reservation: Reservation | None = None
