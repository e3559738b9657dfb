"""The decisions of a plan. Values only; `row` is the job's row in the snapshot's table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.capacity.occupancy import Placement


class Cause(StrEnum):
    """Why a running job is interrupted."""

    PREEMPTED = "preempted"  # another job goes first
    RECLAIMED = "reclaimed"  # its slots were lent to it, and the tenant that they are guaranteed to needs them
    MOVED = "moved"  # it makes a whole node free, and starts elsewhere at once
    RESIZED = "resized"  # it goes on at once with more workers, or with fewer to make room for another job


@dataclass(frozen=True)
class Interrupt:
    row: int
    cause: Cause
    for_row: int | None  # the job that gets the slots


@dataclass(frozen=True)
class Start:
    row: int
    placement: Placement  # (node, workers) for each node


@dataclass(frozen=True)
class Rearrangement:
    """Jobs to interrupt, where each of them starts again, and where the gang starts."""

    victims: tuple[int, ...]
    elsewhere: tuple[tuple[int, Placement], ...]
    placement: Placement


@dataclass(frozen=True)
class Reservation:
    """The nodes on which a job will start at `at_s`. Other jobs may use them only until then."""

    row: int
    nodes: tuple[int, ...]
    at_s: float


@dataclass(frozen=True)
class Plan:
    """Decisions in the order to carry them out: an interruption comes before the starts that need it."""

    decisions: tuple[Interrupt | Start, ...]
    reservation: Reservation | None = None
