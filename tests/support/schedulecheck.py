"""Checks a schedule against its trace: reads the two CSV files only, and shares no code with the simulator."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

RUN_TIME_TOLERANCE_S = 1e-3
CLOCK_TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class Job:
    submit_s: float
    duration_s: float
    gpus: int


@dataclass(frozen=True)
class Run:
    """A line of the schedule. `placement` is (node, GPUs) pairs."""

    line: int
    job: int
    start_s: float
    end_s: float
    placement: tuple[tuple[int, int], ...]


def check_schedule(
    trace_csv: str, schedule_csv: str, nodes: int, gpus_per_node: int, preemption_cost_s: float
) -> list[str]:
    """Everything that is wrong with a schedule; empty if it is right. Nodes are 0 .. nodes - 1, and none ever fails.

    Args:
        trace_csv, schedule_csv: paths.
        preemption_cost_s: what each interruption of a job adds to its run time.
    """
    jobs, runs = _read_trace(trace_csv), _read_schedule(schedule_csv)
    by_job = defaultdict[int, list[Run]](list)
    for run in runs:
        by_job[run.job].append(run)
    found = [f"job {job} is not in the trace" for job in by_job if not 0 <= job < len(jobs)]
    for number, job in enumerate(jobs):
        found += _job_violations(number, job, by_job[number], preemption_cost_s)
        for run in by_job[number]:
            found += _placement_violations(run, job.gpus, nodes, gpus_per_node)
    return found + _node_violations(runs, gpus_per_node)


def _read_trace(path: str) -> list[Job]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [
            Job(float(row["submit_s"]), float(row["duration_s"]), int(row["num_gpus"])) for row in csv.DictReader(file)
        ]


def _read_schedule(path: str) -> list[Run]:
    runs = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            pairs = (part.split(":") for part in row["placement"].split(";"))
            placement = tuple((int(node), int(gpus)) for node, gpus in pairs)
            runs.append(Run(reader.line_num, int(row["job"]), float(row["start_s"]), float(row["end_s"]), placement))
    return runs


def _job_violations(number: int, job: Job, runs: list[Run], cost_s: float) -> list[str]:
    if not runs:
        return [f"job {number} never runs"]
    runs = sorted(runs, key=lambda run: run.start_s)
    found = [f"line {run.line}: job {number} ends before it starts" for run in runs if run.end_s < run.start_s]
    if runs[0].start_s < job.submit_s - CLOCK_TOLERANCE_S:
        found.append(f"line {runs[0].line}: job {number} starts before it is submitted")
    for before, after in pairwise(runs):
        if after.start_s < before.end_s - CLOCK_TOLERANCE_S:
            found.append(f"line {after.line}: job {number} runs twice at once")
    ran_s = sum(run.end_s - run.start_s for run in runs)
    due_s = job.duration_s + cost_s * (len(runs) - 1)
    if abs(ran_s - due_s) > RUN_TIME_TOLERANCE_S:
        found.append(f"job {number} runs for {ran_s:.6f} s, not {due_s:.6f} s")
    return found


def _placement_violations(run: Run, gang: int, nodes: int, gpus_per_node: int) -> list[str]:
    """That full nodes are wholly the gang's own follows from no node being overfull."""
    where = f"line {run.line}: job {run.job}"
    names = [node for node, _ in run.placement]
    if any(not 0 <= node < nodes for node in names):
        return [f"{where} is on a node that is not there"]
    if len(set(names)) < len(names):
        return [f"{where} names a node twice"]
    whole, rest = divmod(gang, gpus_per_node)
    wanted = [gpus_per_node] * whole + ([rest] if rest else [])
    counts = sorted((gpus for _, gpus in run.placement), reverse=True)
    return [] if counts == wanted else [f"{where} holds {counts} GPUs of its nodes, not {wanted}"]


def _node_violations(runs: list[Run], gpus_per_node: int) -> list[str]:
    """The first moment at which each node is overfull. At one instant, what ends goes before what starts."""
    events = defaultdict[int, list[tuple[float, int, int]]](list)
    for run in runs:
        for node, gpus in run.placement:
            events[node].append((run.start_s, gpus, run.line))
            events[node].append((run.end_s - CLOCK_TOLERANCE_S, -gpus, run.line))
    found = []
    for node, its in sorted(events.items()):
        used = 0
        for at_s, gpus, line in sorted(its):
            used += gpus
            if used > gpus_per_node:
                found.append(f"line {line}: node {node} holds {used} GPUs of {gpus_per_node} at {at_s:.6f} s")
                break
    return found
