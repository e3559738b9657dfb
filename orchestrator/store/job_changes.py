"""Changes of a job's columns by each kind of write. Pure functions; the caller holds the write lock.

A clock may go backwards, but waited and held times never shrink.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from cluster.capacity.occupancy import workers_in
from jobs.drivers.link.messages import MOST_METRICS
from jobs.spec.queue import MOST_RUNTIME_S
from orchestrator.queue.records import Job, Measured, NewJob, NodePlaces, Transition
from orchestrator.queue.retry import waits_s
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, MAY_GO_TO, DesiredState, Reason, State
from orchestrator.queue.store import Change
from orchestrator.store.database.rows import plain

_SUBMITTED = {one.name for one in fields(NewJob)} & {one.name for one in fields(Job)}
BY_THE_SCHEDULER = frozenset({Reason.PREEMPTED, Reason.RECLAIMED, Reason.MOVED})


def check(transitions: Sequence[Transition]) -> None:
    """Check that transitions are allowed. Raises ValueError."""
    for transition in transitions:
        if transition.to not in MAY_GO_TO[transition.expect]:
            raise ValueError(f"job {transition.job_id} may not go from {transition.expect} to {transition.to}")
        if bool(transition.placement) is not (transition.to is State.STARTING):
            raise ValueError(f"job {transition.job_id}: a placement goes with a move to starting, and with no other")


def submitted(new: NewJob, job_id: str, number: int, now_s: float, changed: int) -> Job:
    return Job(
        **{name: getattr(new, name) for name in _SUBMITTED},
        job_id=job_id,
        number=number,
        submitted_s=now_s,
        waiting_since_s=now_s,
        changed=changed,
    )


def after_transition(
    job: Job, transition: Transition, now_s: float, changed: int, parents_ended_s: float = 0.0
) -> Job | None:
    """Return the job after a transition; None: the job is not in the state or attempt that the transition expects."""
    if job.state is not transition.expect or job.attempt != transition.attempt:
        return None
    follows = {**_leaving(job, transition, now_s, parents_ended_s), **_arriving(job, transition, now_s)}
    return replace(
        job,
        state=transition.to,
        reason=transition.reason,
        message=plain(transition.message),
        changed=changed,
        **follows,
    )


def _leaving(job: Job, transition: Transition, now_s: float, parents_ended_s: float) -> dict[str, Any]:
    if job.state is State.QUEUED:
        return {"waited_s": job.waited_s + max(waits_s(job, now_s, parents_ended_s) - transition.stopped_s, 0.0)}
    if job.state in HOLDS_A_LEASE and transition.to not in HOLDS_A_LEASE:
        held_s = max(now_s - job.started_s, 0.0) if job.started_s is not None else 0.0
        return {"placement": (), "started_s": None, "attained_s": job.attained_s + held_s, "most_workers": None}
    return {}


def _with_workers(job: Job, num_workers: int) -> dict[str, Any]:
    """Change the workers of an elastic job. Speed is taken to be proportional to the number of workers."""
    if not job.sizes or num_workers == job.gang.num_workers:
        return {}
    faster, left_s = num_workers / job.gang.num_workers, job.remaining_s
    gang = replace(job.gang, num_workers=num_workers)
    return {"gang": gang, "remaining_s": None if left_s is None else left_s / faster}


def _arriving(job: Job, transition: Transition, now_s: float) -> dict[str, Any]:
    if transition.to is State.STARTING:
        attempt = {"attempt": job.attempt + 1, "placement": transition.placement, "started_s": now_s, "heard_s": None}
        return attempt | _with_workers(job, workers_in(transition.placement))
    if transition.to in ENDED:
        return {"ended_s": now_s}
    if transition.to is not State.QUEUED:
        return {}
    return {"waiting_since_s": now_s, **_counted(job, transition.reason), **_with_least(job)}


def _with_least(job: Job) -> dict[str, Any]:
    return _with_workers(job, job.sizes[0]) if job.sizes else {}


def _counted(job: Job, reason: Reason) -> dict[str, Any]:
    if reason is Reason.PAUSED:
        return {}
    retries = {**job.retries, reason: job.retries.get(reason, 0) + 1}
    return {"retries": retries, "interruptions": job.interruptions + (reason in BY_THE_SCHEDULER)}


def given_back(job: Job, kept: NodePlaces, changed: int) -> tuple[Job, NodePlaces] | None:
    """Return the job with the kept part of its lease, and the places given back. None: `kept` is not a valid part.

    `remaining_s` is unchanged, because the workers that were given back no longer contributed.
    """
    held, keeps = Counter(dict(job.placement)), Counter(dict(kept))
    back = held - keeps
    if job.state not in HOLDS_A_LEASE or not job.sizes or not back or not keeps or keeps - held:
        return None
    num_workers = keeps.total()
    if num_workers not in job.sizes:
        return None
    placement = tuple((node, keeps[node]) for node, _ in job.placement if keeps[node])
    gang = replace(job.gang, num_workers=num_workers)
    after = replace(job, placement=placement, gang=gang, most_workers=num_workers, changed=changed)
    return after, tuple((node, back[node]) for node, _ in job.placement if back[node])


def asked(job: Job, change: Change, now_s: float, changed: int, parents_ended_s: float = 0.0) -> Job:
    wanted = job.wanted if change.wanted is None else change.wanted
    follows: dict[str, Any] = {}
    if job.state is State.QUEUED and wanted is not job.wanted:
        follows = {"waited_s": job.waited_s + waits_s(job, now_s, parents_ended_s), "waiting_since_s": now_s}
    priority = job.priority if change.priority is None else change.priority
    return replace(job, wanted=wanted, priority=priority, changed=changed, **follows)


def retried(job: Job, by: str, now_s: float, changed: int) -> Job:
    return replace(
        job,
        state=State.QUEUED,
        reason=Reason.RETRIED,
        message=plain(f"retried by {by}"),
        wanted=DesiredState.RUN,
        waiting_since_s=now_s,
        waited_s=0.0,  # what it waited before it ended gives it no advantage
        interruptions=0,
        attained_s=0.0,  # max_runtime_s starts anew
        client=None,  # a retry is an explicit wish for the job, even if the client that submitted it is gone
        ended_s=None,
        retries={},
        changed=changed,
        **_with_least(job),
    )


def measured(job: Job, said: Measured, now_s: float, changed: int) -> Job | None:
    """Return the job after a report; None: the attempt is not the newest, or the job has ended.

    Durations that are not finite are ignored. `changed` stays if nothing is new except that the driver was heard again.
    """
    if job.attempt != said.attempt or job.state in ENDED:
        return None
    told: Mapping[str, Any] = {
        "run": None if said.run is None else plain(said.run),
        "step": said.step,
        "total_steps": said.total_steps,
        "remaining_s": _finite(said.remaining_s) if job.state in HOLDS_A_LEASE or not job.sizes else None,
        "interruption_cost_s": _finite(said.interruption_cost_s),
        "metrics": None if said.metrics is None else _merged(job.metrics, said.metrics),
    }
    news: dict[str, Any] = {
        name: value for name, value in told.items() if value is not None and value != getattr(job, name)
    }
    if said.saved_step is not None and said.saved_step > job.restored_at_step:
        news |= {"restored_at_step": said.saved_step, "retries": {}}
    is_a_change = bool(news) or job.heard_s is None
    # `heard_s` is set even if the clock went back, because the leader takes an unchanged time for silence.
    return replace(job, heard_s=now_s, changed=changed if is_a_change else job.changed, **news)


def _merged(known: Mapping[str, float], said: Mapping[str, float]) -> dict[str, float]:
    """Merge metrics. If there are too many, the most recently reported ones are kept."""
    new = {name: float(value) for name, value in said.items()}  # plain floats: JSON cannot encode NumPy's, for example
    merged = {name: value for name, value in known.items() if name not in said} | new
    return dict(list(merged.items())[-MOST_METRICS:])


def _finite(value: float | None) -> float | None:
    """Bound a duration, so that everything computed from it is finite. None: it was not finite."""
    if value is None or not math.isfinite(value):
        return None
    return min(max(value, 0.0), MOST_RUNTIME_S)
