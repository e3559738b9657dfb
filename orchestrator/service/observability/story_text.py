"""What there is to say of a job that does not wait for nodes: it has ended, runs, is paused, or waits for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cluster.backend import Other
from cluster.text import many, span
from orchestrator.queue.advice import advice
from orchestrator.queue.months import month_around, utc
from orchestrator.queue.records import Job, NodeOrder, NodeRule
from orchestrator.queue.retry import BUDGETS
from orchestrator.queue.states import HOLDS_A_LEASE, Reason, State, Wanted
from orchestrator.queue.tenants import Tenant
from orchestrator.queue.wording import does, telling
from orchestrator.scheduling.forecast.why import Obstacle, Why

_SHOWN = 10
_OUTSIDE_SHOWN = 3


def ended(job: Job, now_s: float) -> str:
    ago = "" if job.ended_s is None else f" {span(max(now_s - job.ended_s, 0.0))} ago"
    more = telling(job.state, job.message)
    lines = [f"{job.job_id} {_ENDED[job.state]}{ago}{f': {more}' if more else ''}"]
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


def hours_used_up(job: Job, tenant: Tenant, used: Mapping[str, float], now_s: float) -> str:
    """Of a job whose tenant has used up its GPU-hours of the month."""
    most, (_, next_s) = tenant.restrictions.max_gpu_hours_per_month or 0.0, month_around(now_s)
    return (
        f"{job.job_id} waits: tenant {tenant.name} has used {used.get(tenant.name, 0.0):,.1f} of its {most:,.1f} "
        f"GPU-hours of {utc(now_s):%Y-%m}\n"
        f"jobs of {tenant.name} that need GPUs start again on {utc(next_s):%Y-%m-%d} at 00:00 UTC; running ones go on\n"
        f"to do: wait, or ask an admin for more GPU-hours (fleetune tenants set {tenant.name} --max-gpu-hours N)"
    )


_ENDED = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.CANCELLED: "was cancelled"}


def holding(job: Job, now_s: float, label: Callable[[str], str]) -> str:
    """Of a job that holds a lease."""
    where = ", ".join(f"{label(node)} ({many(count, 'worker')})" for node, count in job.placement)
    for_s = now_s - (job.started_s if job.started_s is not None else now_s)
    lines = [f"{job.job_id} {does(job.state)} on {where}; it has been there for {span(max(for_s, 0.0))}"]
    if job.state is State.STOPPING:
        lines += [f"why it stops: {job.message or job.reason.value}", _after_the_stop(job)]
    elif job.wanted is not Wanted.RUN:
        lines.append(f"it was asked to {_ASKED[job.wanted]}, and is told so within seconds")
    if job.total_steps:
        lines.append(f"step {job.step} of {job.total_steps}")
    elif job.step:
        lines.append(f"step {job.step}")
    if job.state is not State.STOPPING:
        lines += _until_its_end(job, for_s)
    if job.heard_s is not None:
        lines.append(f"it was last heard of {span(max(now_s - job.heard_s, 0.0))} ago")
    elif job.state is State.STARTING:
        lines.append("its program is being started, and has not answered yet")
    if job.state is State.RUNNING:
        lines.append(f"to watch it: fleetune logs {job.job_id} -f")
    return "\n".join(lines)


_ASKED = {Wanted.CANCEL: "end", Wanted.PAUSE: "pause"}


def _until_its_end(job: Job, for_s: float) -> list[str]:
    """When a job that runs is expected to end."""
    lines = []
    if job.remaining_s is not None:
        lines.append(f"it is expected to end in about {span(max(job.remaining_s, 0.0))}, as it measures")
    elif job.state is State.RUNNING:
        what = "a command does not say" if job.kind == "command" else "it has not measured yet"
        lines.append(f"{what} how long it will take")
    if job.max_runtime_s is not None:
        left_s = max(job.max_runtime_s - job.attained_s - for_s, 0.0)
        lines.append(f"it may run for {span(left_s)} more (max_runtime_s)")
    return lines


def _after_the_stop(job: Job) -> str:
    """Where a STOPPING job goes, as far as that is known."""
    if job.wanted is Wanted.CANCEL:
        return "it will be cancelled once its program has ended"
    if job.wanted is Wanted.PAUSE:
        return f"then it is paused, until somebody says: fleetune resume {job.job_id}"
    if job.reason in BUDGETS:
        how = "begins anew" if job.kind == "command" else "goes on from its newest checkpoint"
        return f"then it goes back into the queue by itself, and {how}"
    return "it ends with that"


def not_wanted(job: Job, now_s: float) -> str:
    """Of a QUEUED job that its owner does not want to run."""
    if job.wanted is Wanted.PAUSE:
        since = span(max(now_s - job.waiting_since_s, 0.0))
        return f"{job.job_id} has been paused for {since}, by order\nto do: fleetune resume {job.job_id} lets it go on"
    return f"{job.job_id} was asked to end, and will be cancelled within seconds"


def waits_for(job: Job, parents: Sequence[Job], names: Sequence[str]) -> str:
    """
    Args:
        parents: those that have not succeeded.
        names: by which the caller may know them.
    """
    told = [f"{name}, which {_how_it_is(parent)}" for parent, name in zip(parents, names, strict=True)]
    if len(told) == 1:
        lines = [f"{job.job_id} starts after {told[0]}"]
    else:
        lines = [f"{job.job_id} starts after {len(told)} other jobs:", *(f"  {one}" for one in told[:_SHOWN])]
        lines += [f"  and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    it = "it" if len(told) == 1 else "each of them"
    lines.append(f"it waits until {it} has succeeded, and then for nodes; if one fails, this one fails, too")
    named = [(parent, name) for parent, name in zip(parents, names, strict=True) if parent.job_id == name]
    paused = [name for parent, name in named if parent.wanted is Wanted.PAUSE]
    waits = [name for parent, name in named if parent.state is State.QUEUED and parent.wanted is Wanted.RUN]
    if paused:
        lines.append(f"to do: fleetune resume {' '.join(paused[:_SHOWN])}")
    elif waits:
        lines.append(f"to do: nothing; what it waits for in turn: fleetune why {waits[0]}")
    else:
        lines.append("to do: nothing; it starts by itself")
    return "\n".join(lines)


def _how_it_is(parent: Job) -> str:
    left = "" if parent.remaining_s is None else f" and ends in about {span(max(parent.remaining_s, 0.0))}"
    return does(parent.state, parent.wanted) + (left if parent.state in HOLDS_A_LEASE else "")


def put_back(job: Job) -> str:
    """Why a job that has run before waits again; '' for any other."""
    if not job.attempt or job.reason in (Reason.SUBMITTED, Reason.RETRIED):
        return ""
    if job.reason is Reason.PAUSED:
        return "it was paused, and is to go on"
    return f"it has run before, and was put back: {job.message or job.reason.value.replace('-', ' ')}"


def outside(found: Why, others: Sequence[Other]) -> str:
    """Who may hold what is held outside Fleetune; '' where nothing is, or nobody says."""
    if not others or not any(node.foreign for node in found.nodes):
        return ""
    told = [one.name for one in others[:_OUTSIDE_SHOWN]]  # what they were started with may be secret
    more = f", and {len(others) - _OUTSIDE_SHOWN} more" if len(others) > _OUTSIDE_SHOWN else ""
    return f"outside Fleetune run: {', '.join(told)}{more}"


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
