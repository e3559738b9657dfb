"""What there is to say of a job that does not wait for nodes: it has ended, runs, is paused, or waits for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator.queue.advice import advice
from orchestrator.queue.records import Job, NodeOrder, NodeRule
from orchestrator.queue.states import State, Wanted
from orchestrator.scheduling.snapshot import Tenant
from orchestrator.scheduling.why import Obstacle, Why
from orchestrator.scheduling.whytext import span

_SHOWN = 10


def ended(job: Job, now_s: float) -> str:
    ago = "" if job.ended_s is None else f" {span(max(now_s - job.ended_s, 0.0))} ago"
    lines = [f"{job.job_id} has {_ENDED[job.state]}{ago}" + (f": {job.message}" if job.message else "")]
    if job.attempt:
        times = "once" if job.attempt == 1 else f"{job.attempt} times"
        lines.append(f"it was started {times} and ran for {span(job.attained_s)} in all")
    else:
        lines.append("it was never started")
    if job.state is not State.SUCCEEDED:
        lines.append(f"to do: {advice(job.reason, job.job_id)}")
    elif job.run is not None:
        lines.append(f"its run is {job.run}")
    return "\n".join(lines)


_ENDED = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.CANCELLED: "been cancelled"}


def holding(job: Job, now_s: float, label: Callable[[str], str]) -> str:
    """Of a job that holds a lease."""
    where = ", ".join(f"{label(node)} ({workers})" for node, workers in job.placement)
    for_s = now_s - (job.started_s if job.started_s is not None else now_s)
    lines = [f"{job.job_id} {_HOLDS[job.state]} on {where}, since {span(max(for_s, 0.0))}"]
    if job.state is State.STOPPING:
        lines.append(f"it was told to stop: {job.message or job.reason.value}")
    elif job.wanted is not Wanted.RUN:
        lines.append(f"its owner wants it to {job.wanted.value}: it will be told with the next pass")
    if job.total_steps:
        lines.append(f"step {job.step} of {job.total_steps}")
    elif job.step:
        lines.append(f"step {job.step}")
    if job.remaining_s is not None and job.state is not State.STOPPING:
        lines.append(f"about {span(max(job.remaining_s, 0.0))} remain, as it measures")
    if job.heard_s is not None:
        lines.append(f"its driver was heard {span(max(now_s - job.heard_s, 0.0))} ago")
    elif job.state is State.STARTING:
        lines.append("its driver has not answered yet")
    return "\n".join(lines)


_HOLDS = {State.STARTING: "is starting", State.RUNNING: "runs", State.STOPPING: "is stopping"}


def not_wanted(job: Job, now_s: float) -> str:
    """Of a QUEUED job that its owner does not want to run."""
    if job.wanted is Wanted.PAUSE:
        since = span(max(now_s - job.waiting_since_s, 0.0))
        return f"{job.job_id} is paused by its owner, since {since}\nto do: fleetune resume {job.job_id}"
    return f"{job.job_id} is to be cancelled, and will be with the next pass"


def waits_for(job: Job, parents: Sequence[Job], names: Sequence[str]) -> str:
    """
    Args:
        parents: those that have not succeeded.
        names: by which the caller may know them.
    """
    lines = [f"{job.job_id} waits for {'another job' if len(parents) == 1 else f'{len(parents)} other jobs'}:"]
    for parent, name in list(zip(parents, names, strict=True))[:_SHOWN]:
        left = "" if parent.remaining_s is None else f", about {span(max(parent.remaining_s, 0.0))} remain"
        paused = " (paused)" if parent.wanted is Wanted.PAUSE else ""
        lines.append(f"  {name} is {parent.state.value}{paused}{left}")
    if len(parents) > _SHOWN:
        lines.append(f"  and {len(parents) - _SHOWN} more")
    return "\n".join(lines)


def limit(found: Why, tenant: Tenant | None) -> str:
    """The numbers of a limit that is reached; '' where none is."""
    if found.obstacle is not Obstacle.LIMIT or tenant is None:
        return ""
    most = ", ".join(f"{gpus} {'GPUs' if kind is None else f'{kind} GPUs'}" for kind, gpus in tenant.limit)
    return f"tenant {tenant.name} may hold {most} at once: it starts when its other jobs have given some back"


def closed(found: Why, ids: Sequence[str], rules: Mapping[str, NodeRule], called: Sequence[str]) -> str:
    """Which of the machines that it could use take nothing new, by whose order, and what takes that back."""
    lines = []
    for use in found.nodes:
        rule = rules.get(ids[use.node])
        if rule is not None:
            what = "cordoned" if rule.order is NodeOrder.CORDON else "being drained"
            name, reason = called[use.node], f" ({rule.reason})" if rule.reason else ""
            lines.append(f"{name} is {what} by {rule.by}{reason}: fleetune uncordon {name}")
    return "\n".join(lines[:_SHOWN])
