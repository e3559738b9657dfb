"""Text about a job that does not wait for nodes: it has ended, runs, is paused, or waits for other jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.text import many, span
from orchestrator.queue.months import month_around, utc
from orchestrator.queue.records import Job, NodeOrder, NodeRule
from orchestrator.queue.retry import BUDGETS
from orchestrator.queue.states import HOLDS_A_LEASE, DesiredState, Reason, State
from orchestrator.queue.tenants import Tenant
from orchestrator.queue.wording import advice, detail_of, does
from orchestrator.scheduling.forecast.why import Obstacle, Why

_SHOWN = 10
_OUTSIDE_SHOWN = 3


@dataclass(frozen=True)
class StateExplanation:
    """Why a job is in its state.

    Attributes:
        reason: one line, without values that change all the time.
        so_far: how long this has been so; the first line of the text ends with it.
        more: further lines.
        next_step: what the user can do; empty: nothing is needed.
    """

    reason: str
    so_far: str = ""
    more: Sequence[str] = ()
    next_step: str = ""

    @property
    def text(self) -> str:
        first = "; ".join(filter(None, (self.reason, self.so_far)))
        last = [f"to do: {self.next_step}"] if self.next_step else []
        return "\n".join([first, *self.more, *last])


def describe_ended(job: Job, now_s: float) -> StateExplanation:
    ago = "" if job.ended_s is None else f" {span(max(now_s - job.ended_s, 0.0))} ago"
    more = detail_of(job.state, job.message)
    lines = ["it was never started"]
    if job.attempt:
        times = "once" if job.attempt == 1 else f"{job.attempt} times"
        lines = [f"it was started {times} and ran for {span(job.attained_s)} in all"]
    next_step = "" if job.state is State.SUCCEEDED else advice(job.reason, job.job_id)
    if job.state is State.SUCCEEDED and job.run is not None:
        lines.append(f"its run is {job.run}")
    reason = f"{job.job_id} {_ENDED[job.state]}{ago}{f': {more}' if more else ''}"
    return StateExplanation(reason, more=lines, next_step=next_step)


def describe_hours_used_up(job: Job, tenant: Tenant, used: Mapping[str, float], now_s: float) -> StateExplanation:
    """Describe a job whose tenant has used up its GPU-hours of the month."""
    most, (_, next_s) = tenant.restrictions.max_gpu_hours_per_month or 0.0, month_around(now_s)
    begun = [describe_earlier_attempts(job), _after_the_month(job)] if job.attempt else []
    return StateExplanation(
        f"{job.job_id} waits: tenant {tenant.name} has used {used.get(tenant.name, 0.0):,.1f} of its {most:,.1f} "
        f"GPU-hours of {utc(now_s):%Y-%m}",
        more=[
            f"jobs of {tenant.name} that need GPUs start again on {utc(next_s):%Y-%m-%d} at 00:00 UTC; running ones "
            "go on",
            *filter(None, begun),
        ],
        next_step=f"wait, or ask an admin for more GPU-hours (fleetune tenants set {tenant.name} --max-gpu-hours N)",
    )


def _after_the_month(job: Job) -> str:
    return f"this also holds for a job that has begun and no longer runs; then it {_how_it_goes_on(job)}"


def _how_it_goes_on(job: Job) -> str:
    return "begins anew" if job.kind == "command" else "goes on from its newest checkpoint"


_ENDED = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.CANCELLED: "was cancelled"}


def describe_active(job: Job, now_s: float, label: Callable[[str], str]) -> StateExplanation:
    """Describe a job that holds a lease."""
    where = ", ".join(f"{label(node)} ({many(count, 'worker')})" for node, count in job.placement)
    for_s = now_s - (job.started_s if job.started_s is not None else now_s)
    lines = list[str]()
    if job.state is State.STOPPING:
        lines += [f"why it stops: {job.message or job.reason.value}", _after_the_stop(job)]
    elif job.wanted is not DesiredState.RUN:
        lines.append(f"it was asked to {_ASKED[job.wanted]}, and its driver is told within seconds")
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
    so_far = f"it has been there for {span(max(for_s, 0.0))}"
    return StateExplanation(f"{job.job_id} {does(job.state)} on {where}", so_far, lines)


_ASKED = {DesiredState.CANCEL: "end", DesiredState.PAUSE: "pause"}


def _until_its_end(job: Job, for_s: float) -> list[str]:
    """Say when a running job is expected to end."""
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
    """Say what a STOPPING job will do next, as far as that is known."""
    if job.wanted is DesiredState.CANCEL:
        return "it will be cancelled once its program has ended"
    if job.wanted is DesiredState.PAUSE:
        return f"then it is paused; to continue it: fleetune resume {job.job_id}"
    if job.reason in BUDGETS:
        return f"then it goes back into the queue by itself, and {_how_it_goes_on(job)}"
    return "then it ends, and is not queued again"


def describe_paused_or_cancelled(job: Job, now_s: float) -> StateExplanation:
    """Describe a QUEUED job that its owner has paused or cancelled."""
    if job.wanted is DesiredState.PAUSE:
        since = span(max(now_s - job.waiting_since_s, 0.0))
        next_step = f"fleetune resume {job.job_id} lets it go on"
        return StateExplanation(f"{job.job_id} has been paused for {since}, on request", next_step=next_step)
    return StateExplanation(f"{job.job_id} was asked to end, and will be cancelled within seconds")


def describe_waiting_for_jobs(job: Job, parents: Sequence[Job], names: Sequence[str]) -> StateExplanation:
    """Describe a job that waits for others.

    Args:
        parents: its parents that have not succeeded.
        names: how to name each of them to the caller.
    """
    told = [f"{name}, which {_how_it_is(parent)}" for parent, name in zip(parents, names, strict=True)]
    reason, lines = f"{job.job_id} starts after {told[0]}", list[str]()
    if len(told) > 1:
        reason, lines = f"{job.job_id} starts after {len(told)} other jobs:", [f"  {one}" for one in told[:_SHOWN]]
        lines += [f"  and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    it = "it" if len(told) == 1 else "each of them"
    lines.append(f"it waits until {it} has succeeded, and then for nodes; if one fails, this one fails, too")
    named = [(parent, name) for parent, name in zip(parents, names, strict=True) if parent.job_id == name]
    paused = [name for parent, name in named if parent.wanted is DesiredState.PAUSE]
    waits = [name for parent, name in named if parent.state is State.QUEUED and parent.wanted is DesiredState.RUN]
    next_step = "nothing; it starts by itself"
    if ending := [name for parent, name in named if parent.wanted is DesiredState.CANCEL]:
        next_step = f"it will fail, because {ending[0]} is being cancelled: submit it again without it"
    elif paused:
        next_step = f"fleetune resume {' '.join(paused[:_SHOWN])}"
    elif waits:
        next_step = f"nothing; what it waits for in turn: fleetune why {waits[0]}"
    return StateExplanation(reason, more=lines, next_step=next_step)


def _how_it_is(parent: Job) -> str:
    left = "" if parent.remaining_s is None else f" and ends in about {span(max(parent.remaining_s, 0.0))}"
    return does(parent.state, parent.wanted) + (left if parent.state in HOLDS_A_LEASE else "")


def describe_earlier_attempts(job: Job) -> str:
    """Say why a job that has run before waits again; '' for other jobs."""
    if not job.attempt or job.reason in (Reason.SUBMITTED, Reason.RETRIED):
        return ""
    if job.reason is Reason.PAUSED:
        return "it was paused and resumed"
    return f"it has run before, and was put back: {job.message or job.reason.value.replace('-', ' ')}"


def describe_outside_programs(found: Why, others: Sequence[str]) -> str:
    """Name programs that may hold slots outside Fleetune; '': there are none, or they are unknown."""
    if not others or not any(node.foreign for node in found.nodes):
        return ""
    more = f", and {len(others) - _OUTSIDE_SHOWN} more" if len(others) > _OUTSIDE_SHOWN else ""
    return f"programs outside Fleetune: {', '.join(others[:_OUTSIDE_SHOWN])}{more}"


def describe_limit(found: Why, tenant: Tenant | None) -> str:
    """Give the numbers of a limit that is reached; '': none is."""
    if found.obstacle is not Obstacle.LIMIT or tenant is None:
        return ""
    most = ", ".join(f"{gpus} {'GPUs' if kind is None else f'{kind} GPUs'}" for kind, gpus in tenant.limit)
    return f"tenant {tenant.name} may hold {most} at once: it starts when its other jobs have given some back"


def describe_closed_nodes(
    found: Why, ids: Sequence[str], rules: Mapping[str, NodeRule], called: Sequence[str]
) -> list[str]:
    """Say which nodes that the job could use are closed, by whom, and which command opens them."""
    lines = []
    for use in found.nodes:
        rule = rules.get(ids[use.node])
        if rule is not None:
            what = "cordoned" if rule.order is NodeOrder.CORDON else "being drained"
            name, reason = called[use.node], f" ({rule.reason})" if rule.reason else ""
            lines.append(f"{name} is {what} by {rule.by}{reason}: fleetune uncordon {name}")
    return lines[:_SHOWN]
