"""Jobs of a queue, as short as tests need them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from orchestrator.queue.records import Job, NewJob, NodePlaces
from orchestrator.queue.states import HOLDS_A_LEASE, Reason, State
from orchestrator.store.job_changes import submitted

NOW_S = 1_000_000.0

_BLANK = submitted(NewJob("job", "command", "a", "{}", Gang(1, 1, 1), "test"), "job", 1, NOW_S - 3600.0, changed=1)


def job(job_id: str = "job", state: State = State.QUEUED, gpus: int = 1, on: NodePlaces = (), **changes: Any) -> Job:
    """One GPU for each worker. What holds a lease has held it for an hour (STARTING: a minute), on n0 unless said."""
    if state in HOLDS_A_LEASE:
        since_s = NOW_S - (60.0 if state is State.STARTING else 3600.0)
        changes = {"attempt": 1, "started_s": since_s, "placement": on or (("n0", gpus),)} | changes
    if state is State.STOPPING:
        changes = {"reason": Reason.PREEMPTED} | changes
    return replace(_BLANK, job_id=job_id, name=job_id, state=state, gang=Gang(gpus, 1, 1), **changes)


def inventory(*gpus: int) -> Inventory:
    """Nodes n0, n1, ... with so many GPUs."""
    return Inventory(tuple(Node(f"n{number}", cpus=64, gpus=size) for number, size in enumerate(gpus)))
