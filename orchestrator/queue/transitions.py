"""Decides the next transition of a job from the state of the machines: a table with one function for each state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cluster.backend import Phase, Submission
from orchestrator.queue.clock import USUAL, Timing
from orchestrator.queue.records import Job, Transition
from orchestrator.queue.retry import INTERRUPTED_EXIT, state_after_stop, why_ended
from orchestrator.queue.states import DRIVER_ENDED, ENDED, DesiredState, Reason, State

_STOPS: Mapping[DesiredState, tuple[Reason, str]] = {
    DesiredState.CANCEL: (Reason.CANCELLED, "cancelled"),
    DesiredState.PAUSE: (Reason.PAUSED, "paused"),
}


@dataclass(frozen=True)
class Observation:
    """What is known about the machines and other jobs, at one moment.

    Attributes:
        submissions: by name. A missing one does not run, and never will unless it is doubtful.
        doubtful: names of starts that got no answer: these drivers may still appear.
        nodes: ids of nodes that are alive; None: not known.
        absent: ids of nodes that count as alive, but were not seen this time.
        draining: ids of nodes that preemptible jobs must leave.
        overdue: ids of draining nodes that all jobs must leave.
        labels: names of nodes for people, by id.
        failed: jobs that have failed or were cancelled, each with a phrase for messages.
        refused: submissions that can never start, and why.
        silent_s: seconds of silence of each running driver, by submission. None: drivers do not report, and a job
            counts as RUNNING once the machines say that its driver runs.
        pending_s: seconds for which this server has seen each STARTING attempt without a running driver, by submission.
        timing: its `pending_s`, `register_s` and `silent_s` are the times after which a driver is stopped.
    """

    now_s: float
    submissions: Mapping[str, Submission]
    doubtful: frozenset[str] = frozenset()
    nodes: frozenset[str] | None = None
    absent: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    overdue: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    silent_s: Mapping[str, float] | None = None
    pending_s: Mapping[str, float] = field(default_factory=dict)
    timing: Timing = USUAL

    def called(self, nodes: Iterable[str]) -> list[str]:
        return sorted(self.labels.get(node, node) for node in nodes)


def next_transition(job: Job, seen: Observation) -> Transition | None:
    """Return the next transition of a job, except its start; None: it stays in its state."""
    return _BY_STATE[job.state](job, seen)


def _queued(job: Job, seen: Observation) -> Transition | None:
    if job.wanted is DesiredState.CANCEL:
        return _transition(job, State.CANCELLED, Reason.CANCELLED, "cancelled")
    for parent in job.after:
        if parent in seen.failed:
            return _transition(
                job, State.FAILED, Reason.PARENT_FAILED, f"{parent}, which it waits for, {seen.failed[parent]}"
            )
    return None


def _starting(job: Job, seen: Observation) -> Transition | None:
    submission = seen.submissions.get(job.submission)
    runs = submission is not None and submission.phase is Phase.RUNNING
    if runs and job.wanted is DesiredState.RUN and (job.heard_s is not None or seen.silent_s is None):
        return _transition(job, State.RUNNING, Reason.ANSWERED)
    if job.submission in seen.refused:
        return _transition(job, State.STOPPING, Reason.BAD_INPUT, seen.refused[job.submission])
    if submission is not None:
        return _running(job, seen) or (None if runs else _too_late(job, seen))
    return _on_lost_nodes(job, seen) or _told_to_stop(job, seen) or _too_late(job, seen)


def _too_late(job: Job, seen: Observation) -> Transition | None:
    pending_s = seen.pending_s.get(job.submission, 0.0)
    if pending_s <= seen.timing.pending_s:
        return None
    return _transition(job, State.STOPPING, Reason.NOT_STARTED, f"its driver did not come up in {pending_s:.0f} s")


def _running(job: Job, seen: Observation) -> Transition | None:
    submission = seen.submissions.get(job.submission)
    if submission is not None and submission.phase is Phase.SUCCEEDED:
        return _transition(job, State.SUCCEEDED, Reason.FINISHED, submission.message)
    if (lost := _on_lost_nodes(job, seen)) is not None:
        return lost
    if submission is None or submission.ended:
        if submission is not None and submission.exit_code == INTERRUPTED_EXIT and job.wanted in _STOPS:
            # The driver received the request before this pass.
            return _transition(job, State.STOPPING, *_STOPS[job.wanted])
        reason, text = why_ended(submission or Submission(job.submission, Phase.LOST))
        if reason in DRIVER_ENDED and any(node in seen.absent for node, _ in job.placement):
            reason = Reason.NODE_LOST
        return _transition(job, State.STOPPING, reason, text)
    return _told_to_stop(job, seen) or _too_silent(job, seen)


def _too_silent(job: Job, seen: Observation) -> Transition | None:
    silent_s = (seen.silent_s or {}).get(job.submission, 0.0)
    most_s = seen.timing.register_s if job.heard_s is None else seen.timing.silent_s
    if most_s is None or silent_s <= most_s:
        return None
    said = f"did not register with the server in {silent_s:.0f} s: can its node reach the server?"
    if job.heard_s is not None:
        said = f"was not heard for {silent_s:.0f} s"
    return _transition(job, State.STOPPING, Reason.SILENT, f"its driver runs, and {said}")


def _told_to_stop(job: Job, seen: Observation) -> Transition | None:
    if job.wanted in _STOPS:
        return _transition(job, State.STOPPING, *_STOPS[job.wanted])
    ran_s = job.attained_s + seen.now_s - (job.started_s if job.started_s is not None else seen.now_s)
    if job.max_runtime_s is not None and ran_s > job.max_runtime_s:
        text = f"it has run for {ran_s:.0f} s, and its max_runtime_s is {job.max_runtime_s:g}"
        return _transition(job, State.STOPPING, Reason.TIMED_OUT, text)
    nodes = {node for node, _ in job.placement}
    if draining := seen.called(nodes & (seen.draining if job.preemptible else seen.overdue)):
        over = "" if job.preemptible else ", and its deadline is over"
        return _transition(job, State.STOPPING, Reason.DRAINED, f"{draining[0]} is being drained{over}")
    return None


def _stopping(job: Job, seen: Observation) -> Transition | None:
    submission = seen.submissions.get(job.submission)
    if submission is None and job.submission in seen.doubtful:
        return None
    if submission is not None and not submission.ended:
        return None
    if submission is not None and submission.phase is Phase.SUCCEEDED:
        return _transition(job, State.SUCCEEDED, Reason.FINISHED, "it had finished before it was stopped")
    if job.wanted is DesiredState.CANCEL:
        return _transition(job, State.CANCELLED, Reason.CANCELLED, "cancelled")
    state, text = state_after_stop(job)
    return _transition(job, state, job.reason, text)


def _ended(job: Job, seen: Observation) -> Transition | None:
    return None


_BY_STATE: Mapping[State, Callable[[Job, Observation], Transition | None]] = {
    State.QUEUED: _queued,
    State.STARTING: _starting,
    State.RUNNING: _running,
    State.STOPPING: _stopping,
    **dict.fromkeys(ENDED, _ended),
}


def _on_lost_nodes(job: Job, seen: Observation) -> Transition | None:
    lost = seen.called({node for node, _ in job.placement} - seen.nodes) if seen.nodes is not None else []
    if not lost:
        return None
    text = f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} gone"
    return _transition(job, State.STOPPING, Reason.NODE_LOST, text)


def _transition(job: Job, to: State, reason: Reason, message: str = "") -> Transition:
    return Transition(job.job_id, job.state, job.attempt, to, reason, message)
