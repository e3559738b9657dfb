"""The default policy on a trace, and under harder circumstances; and how near forecasts of first starts come.

    python -m bench.simulate TRACE [--nodes 64 48] [--runs 3] [--variants window forecast ...] [--processes N] [--smoke]

Each run moves every submission by up to 10 s, since ties decide a lot. Lines for people go to stderr, one JSON object
for each cluster and variant to stdout, the summary last.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.errors import InputError
from orchestrator.scheduling.forecast.expected_start import Expected, expected_starts
from orchestrator.scheduling.forecast.queue_simulation import QueueSimulation
from orchestrator.scheduling.policy import POLICIES
from orchestrator.simulate.engine import simulate
from orchestrator.simulate.figures import Figures, figures
from orchestrator.simulate.trace import read_trace
from orchestrator.simulate.values import Setup, Simulated, TraceJob

Answer = dict[str, Any]

VARIANTS = ("window", "preemption_300s", "times_wrong_50", "gangs_x4", "policy", "forecast")
CHANGES: Mapping[str, Answer] = {"preemption_300s": {"preemption_cost_s": 300.0}, "times_wrong_50": {"noise": 0.5}}
LARGER, GPUS_PER_NODE = 4, 8
HOUR_S = 3600.0
BIG = "slowdown_of_big_gangs"  # of 8 GPUs and more
# name -> (the simulator's own name, in how many of its units, what is made of several runs)
FIGURES: dict[str, tuple[str, float, Callable[[list[float]], float]]] = {
    "mean_jct_h": ("mean_jct_s", HOUR_S, statistics.mean),
    "p99_jct_h": ("p99_jct_s", HOUR_S, statistics.mean),
    BIG: ("slowdown_of_big_gangs", 1.0, statistics.mean),
    "lost_gpu_share": ("lost_gpu_share", 1.0, statistics.mean),
    "utilisation": ("utilisation", 1.0, statistics.mean),
    "jain": ("jain", 1.0, min),
    "longest_wait_h": ("longest_wait_s", HOUR_S, max),
    "preemptions": ("preemptions", 1.0, statistics.mean),
    "most_preemptions_of_a_job": ("most_preemptions_of_a_job", 1.0, max),
    "wall_s": ("wall_s", 1.0, statistics.mean),
}
# For the window by nodes of 8 GPUs, of a trace with so many jobs: at most these, but at least this Jain's index.
TARGETED_JOBS = 26_936
TARGETED = ("mean_jct_h", "p99_jct_h", "jain", "longest_wait_h", BIG, "lost_gpu_share")
TARGETS = {64: (2.35, 42.0, 0.98, 30.0, 1.1, 0.003), 48: (2.80, 53.0, 0.97, 118.0, 1.4, 0.004)}
SMOKE_JOBS, SMOKE_NODES = 400, 6
LAST_RUNS, LAST_WAITS = 500, 50  # what is known of the jobs that have finished, and of those that had to wait
PACKAGES = ("fleetune", "numpy")


@dataclass(frozen=True)
class Case:
    """One run of the trace."""

    setup: Setup
    larger: int = 1  # every gang so many times as large


@dataclass(frozen=True)
class Line:
    """A line of results, and the runs that it comes from."""

    variant: str
    cases: tuple[Case, ...]
    easy: tuple[Case, ...] = ()  # the same under EASY


def main() -> None:
    from bench.train import emit, say

    options, results = arguments(), list[Answer]()
    load = os.getloadavg()[0]
    with ProcessPoolExecutor(options.processes, initializer=begin, initargs=(options.trace, options.jobs)) as pool:
        for result in measured(pool, options):
            say(", ".join(f"{name} {value}" for name, value in result.items() if name != "target"))
            emit(result)
            results.append(result)
    emit(summary(results, options) | {"load_average_at_start": load})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", metavar="TRACE", help="CSV file as `fleetune simulate` reads it")
    parser.add_argument("--nodes", type=int, nargs="+", default=[64, 48])
    parser.add_argument("--gpus-per-node", type=int, default=GPUS_PER_NODE)
    parser.add_argument("--runs", type=int, default=3, help="of each variant, jittered; policies are run once")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=["default", "easy", "las", "fair"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--forecasts", type=int, default=150, help="about so many for each cluster")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="runs at a time")
    parser.add_argument("--smoke", action="store_true", help=f"one run of {SMOKE_JOBS} jobs on {SMOKE_NODES} nodes")
    options = parser.parse_args()
    if options.smoke:
        options.nodes, options.runs, options.forecasts = [SMOKE_NODES], 1, 10
    try:
        options.jobs = len(read_trace(options.trace, min(options.nodes) * options.gpus_per_node))
    except InputError as error:
        parser.error(str(error))
    options.jobs = min(options.jobs, SMOKE_JOBS) if options.smoke else options.jobs
    return options


_JOBS: tuple[TraceJob, ...] = ()  # of a process of the pool


def begin(path: str, count: int) -> None:
    global _JOBS
    _JOBS = read_trace(path, None)[:count]


def measured(pool: ProcessPoolExecutor, options: argparse.Namespace) -> Iterator[Answer]:
    """The results in their order. Runs are independent, and each is made once, whoever needs it."""
    lines = [line for nodes in options.nodes for line in lines_of(nodes, options)]
    runs = {case: pool.submit(run, case) for line in lines for case in (*line.cases, *line.easy)}
    asked = [Setup(nodes, options.gpus_per_node, jitter=1) for nodes in options.nodes if "forecast" in options.variants]
    forecasts = [pool.submit(forecast, setup, options.forecasts) for setup in asked]
    for line in lines:
        yield answer(line, runs, options.jobs) | {"processes": options.processes}
    yield from (one.result() for one in forecasts)


def lines_of(nodes: int, options: argparse.Namespace) -> Iterator[Line]:
    def cases(larger: int = 1, **changes: Any) -> tuple[Case, ...]:
        setups = (Setup(nodes, options.gpus_per_node, jitter=at + 1, **changes) for at in range(options.runs))
        return tuple(Case(setup, larger) for setup in setups)

    for variant in options.variants:
        if variant == "policy":
            yield from (Line(variant, cases(policy=name)[:1]) for name in options.policies)
        elif variant == "gangs_x4":
            yield Line(variant, cases(LARGER), easy=cases(LARGER, policy="easy"))
        elif variant != "forecast":
            yield Line(variant, cases(**CHANGES.get(variant, {})))


def run(case: Case) -> Figures:
    gpus = case.setup.nodes * case.setup.gpus_per_node
    return figures(simulate(enlarged(_JOBS, case.larger, gpus), case.setup))


def enlarged(jobs: Sequence[TraceJob], times: int, most: int) -> tuple[TraceJob, ...]:
    """Every gang so many times as large, and none larger than `most`."""
    return tuple(replace(job, num_gpus=min(job.num_gpus * times, most)) for job in jobs)


def answer(line: Line, runs: Mapping[Case, Future[Figures]], jobs: int) -> Answer:
    setup = line.cases[0].setup
    found = together([runs[case].result() for case in line.cases])
    facts = {"result": "simulation", "nodes": setup.nodes, "variant": line.variant, "policy": setup.policy}
    facts |= {"runs": len(line.cases)} | found
    if line.easy:
        under_easy = together([runs[case].result() for case in line.easy])
        facts["easy"] = {name: under_easy[name] for name in ("mean_jct_h", BIG, "utilisation")}
        facts["met"] = against({BIG: under_easy[BIG]}, found)[BIG]["met"]
    known = jobs == TARGETED_JOBS and setup.gpus_per_node == GPUS_PER_NODE and setup.nodes in TARGETS
    if known and line.variant == "window":
        facts["target"] = against(dict(zip(TARGETED, TARGETS[setup.nodes], strict=True)), found)
    return facts


def together(runs: Sequence[Figures]) -> Answer:
    """Means over the runs, or the worst of them. None where a run has no such figure."""
    found: Answer = {}
    for name, (own, unit, over_runs) in FIGURES.items():
        values = [getattr(one, own) for one in runs]
        found[name] = None if None in values else round(over_runs([value / unit for value in values]), 5)
    return found


def against(targets: Mapping[str, float], found: Answer) -> Answer:
    return {name: {"target": target, "met": met(name, found[name], target)} for name, target in targets.items()}


def met(name: str, value: float | None, target: float | None) -> bool | None:
    if value is None or target is None:
        return None
    return value >= target if name == "jain" else value <= target


@dataclass(frozen=True)
class Said:
    """A forecast for one job, as it arrived. Seconds from then."""

    expected: Expected
    as_before_s: float  # how long the last jobs that had to wait did so
    took_s: float

    def holds(self, wait_s: float) -> bool:
        earliest_s, latest_s = self.expected.earliest_s, self.expected.latest_s
        assert earliest_s is not None and latest_s is not None
        return earliest_s <= wait_s <= latest_s


class Past:
    """What was known at a moment of a simulation that has been run before."""

    def __init__(self, simulated: Simulated, waited: Mapping[int, float]) -> None:
        self.start_s: dict[int, float] = {}  # the first of each job
        ends = dict[int, float]()
        for one in sorted(simulated.attempts, key=lambda attempt: attempt.start_s):
            self.start_s.setdefault(one.row, one.start_s)
            ends[one.row] = one.end_s
        self._ends_s = np.array(list(ends.values()))
        self._durations_s = np.array([simulated.jobs[job].duration_s for job in ends])
        waits = sorted((self.start_s[job], self.start_s[job] - arrival_s) for job, arrival_s in waited.items())
        self._starts_s, self._waits_s = np.array(waits).reshape(-1, 2).T

    def ran_s(self, now_s: float) -> list[float]:
        """Run times of the jobs that finished last."""
        finished = (self._ends_s <= now_s).nonzero()[0]
        last = finished[np.argsort(self._ends_s[finished], kind="stable")[-LAST_RUNS:]]
        found: list[float] = self._durations_s[last].tolist()
        return found

    def last_waits_s(self, now_s: float) -> float:
        """Mean wait for the first start of the last ones that had to wait."""
        last = self._waits_s[: np.searchsorted(self._starts_s, now_s, side="right")][-LAST_WAITS:]
        return float(last.mean()) if len(last) else 0.0


def forecast(setup: Setup, about: int, jobs: Sequence[TraceJob] = ()) -> Answer:
    """Run the trace, then run it again and ask for every k-th job that has to wait; both must come to the same."""
    jobs, waited = jobs or _JOBS, dict[int, float]()  # the latter: arrivals by job
    before = simulate(jobs, setup, on_wait=lambda simulation, _, job: waited.update({job: simulation.now_s}))
    past, said = Past(before, waited), dict[int, Said]()
    every = max(1, round(len(waited) / about))
    chosen = frozenset(list(waited)[::every])

    def ask(simulation: QueueSimulation, row: int, job: int) -> None:
        if job in chosen:
            ran_s, began = past.ran_s(simulation.now_s), time.perf_counter()
            expected = expected_starts(simulation.snapshot(), simulation.policy, [row], ran_s)[row]
            said[job] = Said(expected, past.last_waits_s(simulation.now_s), time.perf_counter() - began)

    if simulate(jobs, setup, on_wait=ask).attempts != before.attempts:
        raise SystemExit("asking for forecasts has changed the simulation")
    facts = {"result": "forecast", "nodes": setup.nodes, "had_to_wait": len(waited), "every": every}
    return facts | errors(said, {job: past.start_s[job] - waited[job] for job in said})


def errors(said: Mapping[int, Said], waits_s: Mapping[int, float]) -> Answer:
    """Of the forecasts that name a start, beside those of the waits before; minutes."""
    starts_s = {job: one.expected.start_s for job, one in said.items()}
    told = {job: said[job] for job, start_s in starts_s.items() if start_s is not None}
    off = [(start_s - waits_s[job]) / 60 for job, start_s in starts_s.items() if start_s is not None]
    before = [abs(one.as_before_s - waits_s[job]) / 60 for job, one in told.items()]
    closed = [job for job, one in told.items() if one.expected.latest_s is not None]
    return {
        "made": len(said),
        "none": len(said) - len(told),
        "mean_wait_min": made_of(statistics.mean, [waits_s[job] / 60 for job in told]),
        "mean_error_min": made_of(statistics.mean, [abs(one) for one in off]),
        "median_error_min": made_of(statistics.median, [abs(one) for one in off]),
        "mean_too_late_min": made_of(statistics.mean, off),  # below 0: starts are said to come sooner than they do
        "within_share": made_of(statistics.mean, [said[job].holds(waits_s[job]) for job in closed]),
        "without_latest": len(told) - len(closed),
        "as_before_mean_error_min": made_of(statistics.mean, before),
        "as_before_median_error_min": made_of(statistics.median, before),
        "took_s": made_of(statistics.median, [one.took_s for one in said.values()]),
        "took_s_max": made_of(max, [one.took_s for one in said.values()]),
    }


def made_of(of: Any, values: Sequence[float]) -> float | None:
    return round(float(of(values)), 4) if values else None


def summary(results: Sequence[Answer], options: argparse.Namespace) -> Answer:
    return {
        "result": "summary",
        "targets_missed": {
            one["nodes"]: [name for name, target in one["target"].items() if not target["met"]]
            for one in results
            if "target" in one
        },
        "larger_gangs_no_worse_than_easy": {one["nodes"]: one["met"] for one in results if "easy" in one},
        "forecast_mean_error_min": {
            one["nodes"]: {"said": one["mean_error_min"], "as_before": one["as_before_mean_error_min"]}
            for one in results
            if one["result"] == "forecast"
        },
        "jobs": options.jobs,
        "gpus_per_node": options.gpus_per_node,
        "runs": options.runs,
        "processes": options.processes,  # so many runs at a time, and wall_s is of runs beside each other
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    main()
