"""What has run on the fake cluster, and what must be true of it. Pure functions of a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.backend import Phase


@dataclass(frozen=True)
class Run:
    """One program that has really run.

    Attributes:
        fence: of the caller that started it.
        ended_s: None: it runs.
        gpus: held on each node.
    """

    submission: str
    fence: int
    started_s: float
    ended_s: float | None
    phase: Phase
    gpus: Mapping[str, int] = field(default_factory=dict)

    def runs_at(self, at_s: float) -> bool:
        return self.started_s <= at_s and (self.ended_s is None or at_s < self.ended_s)


def job_of(submission: str) -> str:
    """`tuning-3` is the third attempt of `tuning`."""
    return submission.rpartition("-")[0] or submission


def double_runs(history: Sequence[Run], job: Callable[[str], str] = job_of) -> list[tuple[Run, Run]]:
    """Pairs of one job that ran at the same time. Of two such runs one has already run when the other starts."""
    by_job: dict[str, list[Run]] = {}
    for run in history:
        by_job.setdefault(job(run.submission), []).append(run)
    return [
        (earlier, later)
        for runs in by_job.values()
        for later in runs
        for earlier in runs
        if earlier is not later and earlier.runs_at(later.started_s) and _order(earlier) <= _order(later)
    ]


def most_gpus(history: Sequence[Run]) -> dict[str, int]:
    """The most that were held at one time, on each node."""
    changes = [
        (at_s, change, node)
        for run in history
        for node, gpus in run.gpus.items()
        for at_s, change in ((run.started_s, gpus), (run.ended_s, -gpus))
        if at_s is not None
    ]
    held, most = Counter[str](), dict[str, int]()
    for _, change, node in sorted(changes):  # at one time, what ends first makes room for what starts
        held[node] += change
        most[node] = max(most.get(node, 0), held[node])
    return most


def _order(run: Run) -> tuple[float, str]:
    return run.started_s, run.submission
