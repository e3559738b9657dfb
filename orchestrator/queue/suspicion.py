"""Nodes that fail again and again: what counts against one, and when it is enough. Values and pure functions.

A node is known by its name where it has one: Ray gives a machine a new id each time it comes back.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from cluster.wire import TRY_AGAIN_EXIT
from orchestrator.queue.records import Job, Move
from orchestrator.queue.states import Reason, State

BY: Final = "fleetune"  # whose order it is
WITHIN_S: Final = 24 * 3600.0
ENOUGH: Final = 3.0
_AT_ONCE_S: Final = 120.0  # what hits many nodes within so long is the fault of none of them
_TOLD: Final = 5
_MOST_KEPT: Final = 1000
FACT: Final = "incidents"  # of the store


@dataclass(frozen=True)
class Incident:
    """An attempt that ended for the sake of a machine.

    Attributes:
        nodes: names of those that may be to blame: the ones that were gone, or all of its lease.
        certain: they were gone, and not only among those of the lease.
    """

    at_s: float
    nodes: tuple[str, ...]
    attempt: str
    certain: bool
    what: str


def incident_of(
    job: Job, move: Move, gone: Sequence[str], held: Sequence[str], exit_code: int | None, now_s: float
) -> Incident | None:
    """What a move says of machines; None: nothing.

    Args:
        gone, held: names of the nodes of the job's lease that do not live any more, and of all.
        exit_code: of its driver, where that has ended.
    """
    if move.to is not State.STOPPING:
        return None
    if move.reason in (Reason.NODE_LOST, Reason.DRIVER_LOST) and gone:
        return Incident(now_s, tuple(gone), job.submission, True, "it was gone")
    if move.reason is Reason.DRIVER_LOST and exit_code == TRY_AGAIN_EXIT and held:
        return Incident(now_s, tuple(held), job.submission, False, "the machines failed it")
    return None


def dumped(incidents: Sequence[Incident], now_s: float) -> str:
    """For a store: those that still count."""
    lately = [asdict(one) for one in incidents if now_s - one.at_s <= WITHIN_S]
    return json.dumps(lately[-_MOST_KEPT:], separators=(",", ":"))


def loaded(text: str) -> list[Incident]:
    return [Incident(**{**one, "nodes": tuple(one["nodes"])}) for one in json.loads(text or "[]")]


def suspects(incidents: Iterable[Incident], nodes: int, now_s: float) -> Mapping[str, str]:
    """Nodes that have failed often enough, and the evidence, in one line each.

    One that was gone counts 1 each time, however many jobs it took along; one of several that may be to blame counts
    its part. What hits more than half of all nodes at once says nothing of any of them.

    Args:
        nodes: how many there are.
    """
    lately = [one for one in incidents if now_s - one.at_s <= WITHIN_S]
    against: dict[str, list[tuple[Incident, float]]] = defaultdict(list)
    for one in lately:
        if len(_hit_at(lately, one.at_s)) * 2 > max(nodes, 2):
            continue
        for node in one.nodes:
            if not (one.certain and any(is_same(one, other) for other, _ in against[node])):
                against[node].append((one, 1.0 if one.certain else 1.0 / len(one.nodes)))
    return {
        node: _evidence([one for one, _ in found])
        for node, found in against.items()
        if sum(weight for _, weight in found) >= ENOUGH
    }


def is_same(one: Incident, other: Incident) -> bool:
    """Whether both are one failure of a machine, which took several jobs along."""
    return one.certain and other.certain and abs(one.at_s - other.at_s) <= _AT_ONCE_S


def _hit_at(incidents: Sequence[Incident], at_s: float) -> set[str]:
    return {node for one in incidents if abs(one.at_s - at_s) <= _AT_ONCE_S for node in one.nodes}


def _evidence(found: Sequence[Incident]) -> str:
    told = [f"{one.what} under {one.attempt} at {_clock(one.at_s)}" for one in found[-_TOLD:]]
    return f"failed {len(found)} times within a day: {', '.join(told)}"


def _clock(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%H:%MZ}"
