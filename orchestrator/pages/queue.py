"""Output of the commands `queue`, `status` and `events`, as text. Makes no requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cluster.text import format_time, long_duration
from orchestrator.api import EventView, JobView, WhyView
from orchestrator.pages.show import numbers
from orchestrator.pages.tables import columns, cut, plain, table
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, WOULD_FAIL_AGAIN, DesiredState, Reason, State
from orchestrator.queue.wording import detail_of, happened

LONGEST_NEXT: Final = 100  # characters; `status` shows the whole text
LONGEST_SET: Final = 60


def queue_page(
    jobs: Sequence[JobView],
    counts: Mapping[State, int],
    whys: Mapping[str, WhyView],
    now_s: float,
    width: int | None,
    asked: Sequence[State] = (),
    set_aside: Sequence[str] = (),
    unanswered: str = "",
) -> str:
    """Format the table of `fleetune queue`.

    Args:
        jobs: in the order in which they are shown.
        whys: explanations, by job.
        asked: the states that the user asked for; empty: all.
        set_aside: jobs that the server cannot read or plan, each with the reason.
        unanswered: why the machines do not answer; empty if they do.
    """
    prioritised, several = any(job.priority for job in jobs), len({job.tenant for job in jobs}) > 1
    rows = [
        (
            job.job_id,
            _state(job),
            job.tenant if several or width is None else "",
            str(job.priority) if prioritised else "",
            format_size(job),
            _time(job, now_s),
            steps(job),
            cut(format_labels(job.labels), LONGEST_SET),
            cut(_next(job, whys.get(job.job_id), now_s), LONGEST_NEXT),
        )
        for job in jobs
    ]
    head = ("JOB", "STATE", "TENANT", "PRIO", "SIZE", "TIME", "STEP", "SET", "NEXT")
    body = [columns(head, rows, width, ("PRIO", "TENANT", "SIZE", "STEP", "SET"))] if rows else []
    silent = "the machines do not answer, so nothing starts, and how running jobs end is seen later: "
    notes = [f"set aside: {plain(one)}" for one in set_aside] + ([silent + plain(unanswered)] if unanswered else [])
    return "\n".join([*body, _totals(jobs, counts, asked), *notes])


def in_order(jobs: Sequence[JobView]) -> list[JobView]:
    """Sort jobs: running ones by start, then waiting ones by priority and submission, then ended ones."""

    def key(job: JobView) -> tuple[int, float, float]:
        if job.state in HOLDS_A_LEASE:
            return 0, job.started_s or 0.0, job.number
        if job.state is State.QUEUED:
            return (1 if job.wanted is DesiredState.RUN else 2), -job.priority, job.number
        return 3, -(job.ended_s or 0.0), job.number

    return sorted(jobs, key=key)


def _totals(jobs: Sequence[JobView], counts: Mapping[State, int], asked: Sequence[State]) -> str:
    shown = {state: sum(job.state is state for job in jobs) for state in State}
    paused = sum(map(is_paused, jobs))
    counted = State if asked or any(shown[state] for state in ENDED) else [one for one in State if one not in ENDED]
    parts = []
    for state in counted:
        count = counts.get(state, 0)
        if not count:
            continue
        name, notes = str(state), [f"{shown[state]:,} shown"] if shown[state] < count else []
        if state is State.QUEUED and paused == count and not notes:
            name = "paused"
        elif state is State.QUEUED and paused:
            notes.append(f"{paused:,} paused")
        parts.append(f"{count:,} {name}" + (f" ({', '.join(notes)})" if notes else ""))
    if parts:
        return ", ".join(parts)
    if asked:
        return f"no job is {' or '.join(asked)}"
    return "no job waits or runs. To queue a job: fleetune submit job.yaml. To list ended jobs: fleetune queue --all"


def is_paused(job: JobView) -> bool:
    return job.state is State.QUEUED and job.wanted is DesiredState.PAUSE


def _state(job: JobView) -> str:
    if is_paused(job):
        return "paused"
    if job.state is State.RUNNING and job.wanted is not DesiredState.RUN:
        return "stopping"
    return str(job.state)


def format_size(job: JobView) -> str:
    """Format a job's size: `4 x 1 H100`, `2 x 8 GPU`, `1 x 2 CPU`; `2-8 x 1 GPU` if it is elastic and waits."""
    workers = f"{job.sizes[0]}-{job.sizes[-1]}" if job.sizes and job.state is State.QUEUED else str(job.num_workers)
    if job.gpus_per_worker:
        return f"{workers} x {job.gpus_per_worker} {job.accelerator_type or 'GPU'}"
    return f"{workers} x {job.cpus_per_worker} CPU"


def format_labels(labels: Mapping[str, str]) -> str:
    """Format labels: `learning_rate=1e-05 warmup_ratio=0.1`. Sections of fields are left out if names stay unique."""
    last = [name.rpartition(".")[2] for name in labels]
    shown = [part if last.count(part) == 1 else name for name, part in zip(labels, last, strict=True)]
    return " ".join(f"{name}={value}" for name, value in zip(shown, labels.values(), strict=True))


def _time(job: JobView, now_s: float) -> str:
    """Format how long a job has run, waited or been paused, or how long ago it ended."""
    if job.state in ENDED:
        return f"{long_duration(now_s - job.ended_s)} ago" if job.ended_s is not None else ""
    if is_paused(job):
        return long_duration(now_s - job.waiting_since_s) if job.waiting_since_s is not None else ""
    if job.state is State.QUEUED:
        return long_duration(job.waited_s)
    return long_duration(now_s - job.started_s) if job.started_s is not None else ""


def steps(job: JobView) -> str:
    if job.total_steps:
        return f"{job.step}/{job.total_steps}"
    return str(job.step) if job.step else ""


def _next(job: JobView, why: WhyView | None, now_s: float) -> str:
    """Say what is expected next for a job, or how it ended."""
    if job.state in ENDED:
        return job.message if job.state is not State.SUCCEEDED and job.message else format_metrics(job)
    if job.state in HOLDS_A_LEASE:
        if job.state is State.RUNNING and job.remaining_s is not None:
            return f"about {long_duration(job.remaining_s)} left"
        return job.message if job.state is State.STOPPING else ""
    if job.wanted is DesiredState.PAUSE:
        return f"fleetune resume {job.job_id}"
    if why is not None and why.expected_start_s is not None:
        if why.is_guess:
            return "start unknown: no run time is known yet"
        return f"starts in about {long_duration(max(why.expected_start_s - now_s, 0.0))}"
    if job.reason not in (Reason.SUBMITTED, Reason.RETRIED):
        return str(job.message or job.reason)
    return f"after {', '.join(job.after)}" if job.after else ""


def format_metrics(job: JobView) -> str:
    known = {name: value for name, value in job.metrics.items() if value is not None}
    main = {name: value for name, value in known.items() if name == "loss" or name.startswith("eval_")}
    return numbers(main or dict(list(known.items())[:6]))


def status_page(job: JobView, why: WhyView | None, events: Sequence[EventView], now_s: float, log_end: str = "") -> str:
    """Format the page of `fleetune status`. `events`: the last ones; `log_end`: for a job that has failed."""
    state = _state(job)
    message = "\n".join(map(plain, detail_of(job.reason, detail_of(state, job.message)).splitlines()))
    named = f"{state} ({job.reason})" if detail_of(state, job.reason) else state
    rows = [
        ("job", job.job_id),
        ("state", f"{named}{f': {message}' if message else ''}"),
        ("kind", job.kind),
        ("set", "  ".join(f"{name}={value}" for name, value in job.labels.items())),
        ("size", format_size(job)),
        ("tenant", f"{job.tenant} (submitted by {job.submitted_by})"),
        ("priority", str(job.priority)),
        ("after", ", ".join(job.after)),
        ("submitted", format_time(job.submitted_s)),
        ("waited", long_duration(job.waited_s)),
        ("started", format_time(job.started_s)),
        ("nodes", ", ".join(f"{node} ({workers})" for node, workers in job.on or job.placement)),
        ("attempt", _attempts(job)),
        ("ended", format_time(job.ended_s)),
        ("step", steps(job)),
        ("metrics", format_metrics(job)),
        ("time left", "" if job.remaining_s is None or job.state in ENDED else long_duration(job.remaining_s)),
        ("limit", "" if job.max_runtime_s is None else f"{long_duration(job.max_runtime_s)} of run time"),
        ("heartbeat", _heard(job, now_s)),
        ("run", job.run or ""),
        ("logs", f"fleetune logs {job.job_id}{'' if job.state in ENDED else ' -f'}" if job.attempt else ""),
        ("to resume", f"fleetune resume {job.job_id}" if state == "paused" else ""),
        ("to retry", f"fleetune retry {job.job_id}" if _is_to_retry(job) else ""),
    ]
    # The value of `state` may have several lines; they are plain already.
    parts = [table((name, value if name == "state" else plain(value)) for name, value in rows if value)]
    if why is not None:
        parts.append(why.text)
    if events:
        parts.append("last events:\n" + table(((at, what) for at, _, what in event_rows(events)), "  "))
    if log_end:
        parts.append(log_end)
    return "\n\n".join(parts)


def _is_to_retry(job: JobView) -> bool:
    return job.state in (State.FAILED, State.CANCELLED) and job.reason not in WOULD_FAIL_AGAIN


def _attempts(job: JobView) -> str:
    if job.attempt < 1:
        return ""
    more = f", interrupted {job.interruptions} times" if job.interruptions > 1 else ", interrupted once"
    return f"{job.attempt}{more if job.interruptions else ''}"


def _heard(job: JobView, now_s: float) -> str:
    if job.heard_s is None or job.state not in HOLDS_A_LEASE:
        return ""
    return f"{long_duration(now_s - job.heard_s)} ago"


def event_rows(events: Sequence[EventView]) -> list[tuple[str, str, str]]:
    """Return (time, job or `cluster`, text) for each event.

    If a job's program ends by itself, the events `stopping` and `ended` have the same time and text; only the second is
    returned.
    """
    said = {(one.job_id, one.at_s, one.message) for one in events if one.kind != State.STOPPING}
    shown = [one for one in events if one.kind != State.STOPPING or (one.job_id, one.at_s, one.message) not in said]
    return [(format_time(one.at_s), one.job_id or "cluster", _what(one)) for one in shown]


def _what(event: EventView) -> str:
    if event.job_id is None:
        return plain(event.message or event.kind)
    return plain(happened(event.kind, event.message, event.data))


def event_lines(events: Sequence[EventView]) -> list[str]:
    return ["  ".join(row) for row in event_rows(events)]
