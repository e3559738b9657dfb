"""What must hold in a soak: pure functions from what was seen to what is wrong with it, a line for each."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.queue.retry import BUDGETS
from orchestrator.queue.states import ENDED, Reason, State

BEGINS, ENDS = "begins", "ends"
_OUT_OF_BUDGET = frozenset(reason for reason, budget in BUDGETS.items() if budget is not None)


@dataclass(frozen=True)
class Beat:
    """A line that a program has written: it lived then, whatever the queue thinks."""

    job_id: str
    attempt: int
    rank: int
    host: str
    pid: int
    at_s: float
    what: str


@dataclass(frozen=True)
class Cut:
    """From when to when a host could not be reached, so that nobody could end what ran there."""

    host: str
    from_s: float
    to_s: float

    def covers(self, beat: Beat) -> bool:
        return beat.host == self.host and self.from_s <= beat.at_s <= self.to_s


@dataclass(frozen=True)
class Holding:
    """What the queue says of a node: its CPUs, and the CPUs that leases on it come to."""

    node: str
    cpus: int
    held: int


@dataclass(frozen=True)
class Seen:
    """A job, as the queue shows it."""

    job_id: str
    state: State
    reason: Reason
    attempt: int


@dataclass(frozen=True)
class Fate:
    """What a job is and what was done to it: from that follows how it may end.

    Attributes:
        num_workers: of a command, each of which says in its journal that it ends; None: a training.
        asked_to_cancel: by the soak.
        program_killed: by the soak, which to the queue is a program that fails.
    """

    job_id: str
    num_workers: int | None
    exit_code: int = 0
    asked_to_cancel: bool = False
    program_killed: bool = False


@dataclass(frozen=True)
class Happened:
    """An event of a job. `kind`: mostly the state that it came to."""

    job_id: str
    number: int
    kind: str


def two_at_once(beats: Iterable[Beat], cuts: Sequence[Cut] = ()) -> list[str]:
    """Attempts of one job of which programs lived at the same time; and programs that one attempt has started twice."""
    spans: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    began: Counter[tuple[str, int, int]] = Counter()
    for beat in beats:
        began[beat.job_id, beat.attempt, beat.rank] += beat.what == BEGINS
        if any(cut.covers(beat) for cut in cuts):
            continue
        first, last = spans[beat.job_id].get(beat.attempt, (beat.at_s, beat.at_s))
        spans[beat.job_id][beat.attempt] = min(first, beat.at_s), max(last, beat.at_s)
    found = [
        f"{job_id}: attempt {later} began {last - first:.2f} s before attempt {earlier} was last alive"
        for job_id, by_attempt in sorted(spans.items())
        for (earlier, (_, last)), (later, (first, _)) in itertools.combinations(sorted(by_attempt.items()), 2)
        if first <= last
    ]
    return found + [
        f"{job_id}: attempt {attempt} has started rank {rank} {count} times"
        for (job_id, attempt, rank), count in sorted(began.items())
        if count > 1
    ]


def two_drivers(alive: Iterable[tuple[str, int]]) -> list[str]:
    """`alive`: job and attempt of each driver that there is at one moment."""
    attempts: dict[str, set[int]] = defaultdict(set)
    for job_id, attempt in alive:
        attempts[job_id].add(attempt)
    return [f"{job}: drivers of attempts {sorted(those)} live" for job, those in attempts.items() if len(those) > 1]


def over_capacity(nodes: Iterable[Holding]) -> list[str]:
    """Nodes of which more is leased than there is. One that is gone has no CPUs, and may still be held."""
    return [f"{one.node}: {one.held} of {one.cpus} CPUs are leased" for one in nodes if one.held > one.cpus > 0]


def gone_back(before: Mapping[str, Seen], now: Iterable[Seen]) -> list[str]:
    """Jobs that have left their end, lost an attempt, or are not known any more."""
    jobs = {job.job_id: job for job in now}
    found = [f"{job_id}: is not known any more" for job_id in before if job_id not in jobs]
    for job_id, job in jobs.items():
        if (old := before.get(job_id)) is None:
            continue
        if old.state in ENDED and (job.state, job.attempt) != (old.state, old.attempt):
            found.append(f"{job_id}: had ended as {old.state}, and is {job.state} in attempt {job.attempt}")
        if job.attempt < old.attempt:
            found.append(f"{job_id}: was in attempt {old.attempt}, and is in attempt {job.attempt}")
    return found


def histories(events: Iterable[Happened], jobs: Iterable[Seen]) -> list[str]:
    """Of jobs that have ended: one end, nothing after it, and a start for each attempt."""
    by_job: dict[str, list[str]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.number):
        if event.kind in set(State):
            by_job[event.job_id].append(event.kind)
    found = []
    for job in jobs:
        kinds = by_job[job.job_id]
        ends = [kind for kind in kinds if State(kind) in ENDED]
        if len(ends) != 1 or kinds[-1] != ends[0] or ends[0] != job.state:
            found.append(f"{job.job_id}: is {job.state}, and its events are {', '.join(kinds)}")
        if kinds.count(State.STARTING) != job.attempt:
            found.append(f"{job.job_id}: was started {kinds.count(State.STARTING)} times in {job.attempt} attempts")
    return found


def ends(jobs: Iterable[Seen], fates: Iterable[Fate], beats: Iterable[Beat]) -> list[str]:
    """Jobs that have not ended, or otherwise than they may; commands that succeeded without having run to their end."""
    by_id = {job.job_id: job for job in jobs}
    ended: dict[tuple[str, int], set[int]] = defaultdict(set)
    for beat in beats:
        if beat.what == ENDS:
            ended[beat.job_id, beat.attempt].add(beat.rank)
    found = []
    for fate in fates:
        job = by_id.get(fate.job_id)
        if job is None or job.state not in ENDED:
            found.append(f"{fate.job_id}: has not ended, but is {job.state if job else 'unknown'}")
        elif why := _why_not(job, fate, ended[job.job_id, job.attempt]):
            found.append(f"{fate.job_id}: {job.state} ({job.reason}, attempt {job.attempt}), {why}")
    return found


def _why_not(job: Seen, fate: Fate, ranks_ended: set[int]) -> str:
    """Why a job may not have ended like that; '': it may."""
    if job.state is State.CANCELLED:
        return "" if fate.asked_to_cancel else "but nobody has cancelled it"
    if job.state is State.SUCCEEDED:
        if fate.exit_code:
            return f"but its program ends with {fate.exit_code}"
        whole = fate.num_workers is None or ranks_ended == set(range(fate.num_workers))
        return "" if whole else f"but only ranks {sorted(ranks_ended)} have ended"
    if job.reason in _OUT_OF_BUDGET:
        budget = BUDGETS[job.reason] or 0
        return "" if job.attempt > budget else f"but it may be tried {budget} times more"
    may_fail = fate.exit_code != 0 or fate.program_killed
    return "" if job.reason is Reason.RUN_FAILED and may_fail else "but nothing was wrong with it"


def steps(name: str, recorded: Sequence[int], save_steps: int, hard: bool, total: int | None = None) -> list[str]:
    """What is wrong with the steps of a run, in the order in which they were written.

    A step comes twice only where a group of workers was lost hard. The checkpoint before may still be on its way to
    storage then, so that up to two intervals are done again.

    Args:
        hard: whether anything hard was done to its workers or its driver.
        total: of a run that has succeeded; None: it has not.
    """
    found, before = [], 0
    for step in recorded:
        if step > before + 1:
            found.append(f"{name}: step {step} comes after step {before}")
        elif step <= before and not hard:
            found.append(f"{name}: step {step} comes again after step {before}, and nothing was killed")
        elif before - step + 1 > 2 * save_steps:
            found.append(f"{name}: goes back from {before} to {step}, with a checkpoint every {save_steps} steps")
        before = step
    if total is not None and before != total:
        found.append(f"{name}: succeeded after step {before} of {total}")
    return found


def redone(recorded: Sequence[int]) -> int:
    """How many steps were computed again."""
    return len(recorded) - len(set(recorded))


def leftovers(
    held: Iterable[Holding], groups: int, used: Mapping[str, float], processes: Iterable[str], cpus: tuple[int, int]
) -> list[str]:
    """What is left once all jobs have ended.

    Args:
        groups: placement groups of Ray.
        used: CPUs that Ray says are in use, by node.
        processes: drivers and programs of jobs.
        cpus: that Ray has, and should have.
    """
    found = [f"{one.node}: {one.held} CPUs are still leased" for one in held if one.held]
    found += [f"{groups} placement groups are left on Ray"] if groups else []
    found += [f"{node}: Ray says that {amount} CPUs are in use" for node, amount in sorted(used.items()) if amount]
    found += [f"a process is left: {process}" for process in processes]
    return found + ([f"Ray has {cpus[0]} CPUs instead of {cpus[1]}"] if cpus[0] != cpus[1] else [])


def tracebacks(log: str) -> list[str]:
    """Of the server's log: the last line of each."""
    found, within = [], False
    for line in log.splitlines():
        if "Traceback (most recent call last)" in line:
            within = True
        elif within and line and not line.startswith(" "):
            found.append(f"the server's log has a traceback: {line[:200]}")
            within = False
    return found + (["the server's log ends within a traceback"] if within else [])
