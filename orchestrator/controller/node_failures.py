"""Nodes that fail again and again: what counts against one, and when it is enough. Values and pure functions.

A node counts as gone under a job, or as broken where drivers of several jobs name its hardware. A driver that blames
its machines without naming one does not count: it cannot tell them from storage that does not answer. A node is known
by its name where it has one: Ray gives a machine a new id each time it comes back.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from orchestrator.queue.records import Job, Move
from orchestrator.queue.states import DRIVER_ENDED, Reason, State

BY: Final = "fleetune"  # whose order it is
WITHIN_S: Final = 24 * 3600.0
ENOUGH: Final = 3
AT_ONCE_S: Final = 120.0  # a node that is gone under several jobs within so long has failed once
FACT: Final = "incidents"  # of the store: nodes that were gone
REPORTED: Final = "reported-incidents"  # of the store: hardware that drivers say has failed
FAULTY: Final = "faulty"  # the kind of the events of these; each is of a job, since others may not know its name
_TOLD: Final = 5
_MOST_KEPT: Final = 1000


@dataclass(frozen=True)
class Incident:
    """An attempt whose nodes were gone; `nodes`: their names."""

    at_s: float
    nodes: tuple[str, ...]
    attempt: str


def incident_of(job: Job, move: Move, gone: Sequence[str], now_s: float) -> Incident | None:
    """What a move says of machines; None: nothing. `gone`: names of the job's nodes that do not live any more."""
    stops = move.to is State.STOPPING and move.reason in (Reason.NODE_LOST, *DRIVER_ENDED)
    return Incident(now_s, tuple(gone), job.submission) if stops and gone else None


def is_an_outage(gone: int, nodes: int) -> bool:
    """Whether more than half of the nodes went at about the same time, which blames none of them.

    Args:
        nodes: number of all nodes, including those that are gone.
    """
    return gone * 2 > nodes


def added(incidents: Sequence[Incident], found: Iterable[Incident], now_s: float) -> list[Incident]:
    """Those that still count, each attempt once."""
    known = {one.attempt for one in incidents}
    every = [*incidents, *(one for one in found if one.attempt not in known)]
    return [one for one in every if now_s - one.at_s <= WITHIN_S][-_MOST_KEPT:]


def suspects(incidents: Iterable[Incident], now_s: float, reported: Iterable[Incident] = ()) -> Mapping[str, str]:
    """Nodes that have failed often enough, and the evidence, in one line each.

    Args:
        reported: by drivers. Each job counts once against a node: its own program may be what breaks there.
    """
    against: dict[str, list[float]] = defaultdict(list)
    named = list(_one_of_each_job(reported))
    for one in sorted([*incidents, *named], key=lambda one: one.at_s):
        for node in one.nodes if now_s - one.at_s <= WITHIN_S else ():
            if not against[node] or one.at_s - against[node][-1] > AT_ONCE_S:
                against[node].append(one.at_s)
    broken = {node for one in named for node in one.nodes}
    return {node: _evidence(times, node in broken) for node, times in against.items() if len(times) >= ENOUGH}


def _one_of_each_job(reported: Iterable[Incident]) -> Iterator[Incident]:
    seen: set[tuple[str, str]] = set()
    for one in reported:
        job = one.attempt.rpartition("-")[0]
        nodes = tuple(node for node in one.nodes if (job, node) not in seen)
        seen |= {(job, node) for node in nodes}
        if nodes:
            yield replace(one, nodes=nodes)


def dumped(incidents: Sequence[Incident]) -> str:
    """For a store."""
    return json.dumps([asdict(one) for one in incidents], separators=(",", ":"))


def loaded(text: str) -> list[Incident]:
    """What another release has written, and this one does not know, is passed over."""
    found = []
    with contextlib.suppress(ValueError, TypeError, KeyError):
        for one in json.loads(text or "[]"):
            found.append(Incident(float(one["at_s"]), tuple(map(str, one["nodes"])), str(one["attempt"])))
    return found


def _evidence(times: Sequence[float], broken: bool) -> str:
    """Of whose jobs, is for those who may know."""
    told = [f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%H:%MZ}" for at_s in times[-_TOLD:]]
    what = "was gone or had broken hardware" if broken else "was gone"
    return f"{what} under jobs {len(times)} times within a day: at {', '.join(told)}"
