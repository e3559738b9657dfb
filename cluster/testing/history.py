"""The programs that have run on a fake cluster, and checks of this history. Pure functions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.backend import Phase


@dataclass(frozen=True)
class Run:
    """A program that has run.

    Attributes:
        fence: fence of the caller that started it.
        ended_s: None while it runs.
        gpus: number of GPUs that it holds on each node.
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
    """Return the job of an attempt: `tuning` for `tuning-3`."""
    return submission.rpartition("-")[0] or submission


def double_runs(history: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return the pairs of runs of one job that overlapped in time, the one that started earlier first."""
    by_job: dict[str, list[Run]] = {}
    for run in sorted(history, key=lambda run: (run.started_s, run.submission)):
        by_job.setdefault(job_of(run.submission), []).append(run)
    pairs = (pair for runs in by_job.values() for pair in itertools.combinations(runs, 2))
    return [(earlier, later) for earlier, later in pairs if earlier.runs_at(later.started_s)]


def most_gpus(history: Sequence[Run]) -> dict[str, int]:
    """Return the largest number of GPUs that were held at one time, by node."""
    changes = [
        (at_s, change, node)
        for run in history
        for node, gpus in run.gpus.items()
        for at_s, change in ((run.started_s, gpus), (run.ended_s, -gpus))
        if at_s is not None
    ]
    held, most = Counter[str](), dict[str, int]()
    for _, change, node in sorted(changes):  # at equal times, ends come before starts
        held[node] += change
        most[node] = max(most.get(node, 0), held[node])
    return most
