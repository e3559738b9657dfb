"""Failures of nodes: what counts as one, and how many make a node suspect. Values and pure functions.

A node has an incident if it disappears under a job, or if drivers of several jobs report its hardware as broken. A
report that does not name the node does not count: the cause may be storage that does not answer. Nodes are identified
by name if they have one, because Ray gives a machine a new id each time it comes back.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from orchestrator.queue.records import Job, Transition
from orchestrator.queue.states import DRIVER_ENDED, Reason, State

BY: Final = "fleetune"  # who has ordered the cordon, for node rules
WITHIN_S: Final = 24 * 3600.0
ENOUGH: Final = 3
AT_ONCE_S: Final = 120.0  # seconds; a node that disappears under several jobs within this time has one incident
FACT: Final = "incidents"  # key in the store: nodes that disappeared
REPORTED: Final = "reported-incidents"  # key in the store: hardware failures that drivers reported
FAULTY: Final = "faulty"  # kind of the events about reports, which belong to a job: other tenants may not see its id
_TOLD: Final = 5
_MOST_KEPT: Final = 1000


@dataclass(frozen=True)
class Incident:
    """An attempt whose nodes failed. `nodes`: their names."""

    at_s: float
    nodes: tuple[str, ...]
    attempt: str


def incident_of(job: Job, transition: Transition, gone: Sequence[str], now_s: float) -> Incident | None:
    """Return the incident that a transition implies; None: none. `gone`: names of the job's nodes that disappeared."""
    stops = transition.to is State.STOPPING and transition.reason in (Reason.NODE_LOST, *DRIVER_ENDED)
    return Incident(now_s, tuple(gone), job.submission) if stops and gone else None


def is_an_outage(gone: int, nodes: int) -> bool:
    """Whether more than half of the nodes disappeared at about the same time. Then none of them is blamed.

    Args:
        nodes: number of all nodes, including those that disappeared.
    """
    return gone * 2 > nodes


def added(incidents: Sequence[Incident], found: Iterable[Incident], now_s: float) -> list[Incident]:
    """Add incidents, each attempt once, and drop those that are too old."""
    known = {one.attempt for one in incidents}
    every = [*incidents, *(one for one in found if one.attempt not in known)]
    return [one for one in every if now_s - one.at_s <= WITHIN_S][-_MOST_KEPT:]


def suspects(incidents: Iterable[Incident], now_s: float, reported: Iterable[Incident] = ()) -> Mapping[str, str]:
    """Return nodes that have failed often enough, each with the evidence in one line.

    Args:
        reported: incidents that drivers reported. Each job counts once against a node, since its own program may be the
            cause.
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
    """Encode incidents for the store."""
    return json.dumps([asdict(one) for one in incidents], separators=(",", ":"))


def loaded(text: str) -> list[Incident]:
    """Decode incidents. Content in a format of another release is ignored."""
    found = []
    with contextlib.suppress(ValueError, TypeError, KeyError):
        for one in json.loads(text or "[]"):
            found.append(Incident(float(one["at_s"]), tuple(map(str, one["nodes"])), str(one["attempt"])))
    return found


def _evidence(times: Sequence[float], broken: bool) -> str:
    """Describe incidents without the jobs, which only their tenants may see."""
    told = [f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%H:%MZ}" for at_s in times[-_TOLD:]]
    what = "was gone or reported as faulty" if broken else "was gone"
    return f"{what} under jobs {len(times)} times within a day: at {', '.join(told)}"
