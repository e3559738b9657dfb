"""How long one pass of the scheduler takes, from the store's rows to its decisions, as queue and cluster grow.

    python -m bench.schedule [--queued 1000 3000 10000 30000 100000] [--nodes 100 300 1000] [--rounds 5]
                             [--plot FILE.svg] [--smoke]

`steady`: a full cluster at rest, of whose jobs 1 % have just ended. `cold`: an empty cluster. `unsettled`: a full
cluster whose queue has never been looked at. Lines for people go to stderr, one JSON object for each size and case to
stdout, the summary last.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import os
import pathlib
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.capacity.inventory import Inventory, Node
from cluster.capacity.occupancy import Placement
from orchestrator.pages import svg
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.queue_simulation import Measuring, QueueSimulation
from orchestrator.scheduling.job_table import RUNNING, WAITING
from orchestrator.scheduling.plan.decisions import Plan, Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.scheduling.snapshot import ROW, Snapshot, snapshot_of

Answer = dict[str, Any]
Job = dict[str, Any]  # by the names of ROW
Rows = list[tuple[Any, ...]]

GPUS_PER_NODE = 8
GANGS = {1: 90, 2: 4, 4: 3, 8: 2, 16: 0.6, 32: 0.3, 64: 0.1}  # GPUs of a gang -> how many of a hundred have so many
PRIORITIES = {0: 80, 5: 15, -5: 5}
TENANTS = tuple(Tenant(f"tenant-{number}", weight=1.0 + number % 4) for number in range(20))
USED_S = {tenant.name: 1e5 * (1 + number) for number, tenant in enumerate(TENANTS)}
NOW_S = 1_000_000.0
DAY_S = 86_400.0
ENDED_SHARE = 0.01
MOST_PASSES = 1000  # until a cluster must be at rest
TARGETS_MS = {(10_000, 1000): 50.0, (100_000, 1000): 500.0}  # (queued, nodes) -> a steady pass
PACKAGES = ("fleetune", "numpy")


def main() -> None:
    from bench.train import emit, say

    options, results = arguments(), list[Answer]()
    load = os.getloadavg()[0]
    for nodes in options.nodes:
        for queued in options.queued:
            for result in Bench(queued, nodes).results(options.rounds):
                say(", ".join(f"{name} {value}" for name, value in result.items()))
                emit(result)
                results.append(result)
    if options.plot:
        pathlib.Path(options.plot).write_text(plot(results))
    emit(summary(results, options) | {"load_average_at_start": load})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 300, 1000], help=f"of {GPUS_PER_NODE} GPUs")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each case")
    parser.add_argument("--plot", metavar="FILE.svg", help="write a plot of the steady passes")
    parser.add_argument("--smoke", action="store_true", help="small sizes, one round: does it run at all?")
    options = parser.parse_args()
    if options.smoke:
        options.queued, options.nodes, options.rounds = [100, 300], [10, 30], 1
    options.queued, options.nodes = sorted(set(options.queued)), sorted(set(options.nodes))
    return options


@dataclass(frozen=True)
class Timed:
    """One pass."""

    rows_s: float
    plan_s: float
    decisions: int


class Bench:
    """A queue and a cluster, and the passes over them."""

    def __init__(self, queued: int, nodes: int) -> None:
        self.queued, self.nodes = queued, nodes
        self.random = random.Random(f"{queued} {nodes}")
        self.inventory = Inventory(
            tuple(
                Node(f"node-{number:04d}", cpus=8 * GPUS_PER_NODE, gpus=GPUS_PER_NODE, accelerator_type="A100")
                for number in range(nodes)
            )
        )

    def results(self, rounds: int) -> Iterator[Answer]:
        for case, make in (("cold", self.queue), ("unsettled", self.unsettled), ("steady", self.settled)):
            jobs = make()
            each = [self.some_ended(jobs) if case == "steady" else jobs for _ in range(rounds)]
            gc.collect()
            gc.freeze()  # what this script holds on to would be gone through with the rows
            passes = [self.timed(rows_of(some)) for some in (each[0], *each)][1:]  # the first is not counted
            gc.unfreeze()
            yield {
                "result": "pass",
                "case": case,
                "queued": self.queued,
                "nodes": self.nodes,
                "running": sum(job["state"] == RUNNING for job in jobs),
                "rows_ms": spread([one.rows_s for one in passes]),
                "plan_ms": spread([one.plan_s for one in passes]),
                "total_ms": spread([one.rows_s + one.plan_s for one in passes]),
                "decisions": round(float(np.median([one.decisions for one in passes]))),
            }

    def timed(self, rows: Rows) -> Timed:
        began = time.perf_counter()
        snapshot = self.snapshot(rows)
        read = time.perf_counter()
        made = plan(snapshot)
        return Timed(read - began, time.perf_counter() - read, len(made.decisions))

    def snapshot(self, rows: Rows) -> Snapshot:
        return snapshot_of(rows, self.inventory, TENANTS, USED_S, NOW_S)

    def queue(self) -> list[Job]:
        return [waiting_job(number, self.random) for number in range(self.queued)]

    def full(self) -> list[Job]:
        """Jobs that hold the whole cluster and have run for a while, in the order in which they fit."""
        free, jobs = [GPUS_PER_NODE] * self.nodes, list[Job]()
        for number in range(GPUS_PER_NODE * self.nodes):
            job = waiting_job(self.queued + number, self.random)
            placement = first_fit(free, job["num_workers"])
            if placement:
                named = tuple((self.inventory.nodes[node].node_id, workers) for node, workers in placement)
                jobs.append(running(job, named, self.random))
        return jobs

    def unsettled(self) -> list[Job]:
        return self.queue() + self.full()

    def settled(self) -> list[Job]:
        """A full cluster whose queue has been looked at until there was nothing left to do.

        The best of a longer queue are put on it, run for a while, and the rest is gone over again. Of those that wait
        then, as many are kept as are wanted.
        """
        more = self.queue() + [waiting_job(self.queued + at, self.random) for at in range(GPUS_PER_NODE * self.nodes)]
        begun = [running(job, job["placement"], self.random) if job["placement"] else job for job in self.at_rest(more)]
        jobs = self.at_rest(begun)
        surplus = sum(job["state"] == WAITING for job in jobs) - self.queued
        return self.without(jobs, WAITING, surplus)

    def at_rest(self, before: Sequence[Job]) -> list[Job]:
        """The same jobs, after plans have been made and carried out until one decides nothing."""
        jobs = [dict(job) for job in before]
        left_s = np.array([job["left_s"] for job in jobs])
        simulation = QueueSimulation.of(self.snapshot(rows_of(jobs)), DEFAULT, left_s, Measuring(), lambda _: None)
        for _ in range(MOST_PASSES):
            made = simulation.decide()
            if not made.decisions:
                return jobs
            self.carry_out(made, jobs)
        raise SystemExit(f"{self.queued:,} queued on {self.nodes:,} nodes do not come to rest")

    def carry_out(self, made: Plan, jobs: Sequence[Job]) -> None:
        for decision in made.decisions:
            job = jobs[decision.row]
            if isinstance(decision, Start):
                named = tuple((self.inventory.nodes[node].node_id, workers) for node, workers in decision.placement)
                job |= {"state": RUNNING, "started_s": NOW_S, "placement": named}
            else:
                job |= {"state": WAITING, "placement": None, "waiting_since_s": NOW_S}
                job["attained_s"] += NOW_S - job["started_s"]
                job["interruptions"] += 1

    def some_ended(self, jobs: Sequence[Job]) -> list[Job]:
        count = sum(job["state"] == RUNNING for job in jobs)
        return self.without(jobs, RUNNING, max(1, round(ENDED_SHARE * count)))

    def without(self, jobs: Sequence[Job], state: int, count: int) -> list[Job]:
        """Without so many of those in a state, drawn by lot."""
        gone = set(self.random.sample([at for at, job in enumerate(jobs) if job["state"] == state], count))
        return [job for at, job in enumerate(jobs) if at not in gone]


def waiting_job(number: int, seeded: random.Random) -> Job:
    """Half have run before, and measured what they need."""
    left_s = min(seeded.lognormvariate(8.0, 2.0) + 60.0, 7 * DAY_S)
    has_run = seeded.random() < 0.5
    since_s = NOW_S - seeded.expovariate(1 / 7200.0)
    return {
        "job_id": f"job-{number:06d}",
        "tenant": seeded.choice(TENANTS).name,
        "priority": drawn(PRIORITIES, seeded),
        "num_workers": drawn(GANGS, seeded),
        "cpus_per_worker": 4,
        "gpus_per_worker": 1,
        "accelerator_type": None,
        "state": WAITING,
        "submitted_s": since_s - (7200.0 if has_run else 0.0),
        "waiting_since_s": since_s,
        "waited_s": 1800.0 if has_run else 0.0,
        "not_before_s": None,
        "started_s": None,
        "attained_s": 3600.0 if has_run else 0.0,
        "remaining_s": left_s if has_run else None,
        "most_left_s": 3 * left_s if seeded.random() < 0.3 else None,
        "preemptible": seeded.random() < 0.9,
        "interruptions": int(has_run),
        "interruption_cost_s": 60.0,
        "placement": None,
        "after": None,
        "sizes": None,
        "left_s": left_s,  # no column: what it will really take
    }


def running(job: Job, placement: Any, seeded: random.Random) -> Job:
    """The job after it has run for between ten minutes and a day. It knows by then what it measures."""
    ran_s = 600.0 + seeded.random() * DAY_S
    started = {"state": RUNNING, "started_s": NOW_S - ran_s, "placement": placement, "waiting_since_s": NOW_S - ran_s}
    return {**job, **started, "submitted_s": NOW_S - ran_s - DAY_S, "remaining_s": job["left_s"]}


def drawn(shares: Mapping[int, float], seeded: random.Random) -> int:
    return seeded.choices(list(shares), list(shares.values()))[0]


def first_fit(free: list[int], gpus: int) -> Placement:
    """Take the first node, or whole nodes; empty where there is no room."""
    each = min(gpus, GPUS_PER_NODE)
    nodes = [node for node, left in enumerate(free) if left >= each][: gpus // each]
    if len(nodes) * each < gpus:
        return ()
    for node in nodes:
        free[node] -= each
    return tuple((node, each) for node in nodes)


def rows_of(jobs: Sequence[Job]) -> Rows:
    """As a cursor gives them."""
    return [tuple(job[name] for name in ROW) for job in jobs]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(1000 * float(np.median(seconds)), 3), "worst": round(1000 * max(seconds), 3)}


def summary(results: Sequence[Answer], options: argparse.Namespace) -> Answer:
    steady = {(one["queued"], one["nodes"]): one["total_ms"] for one in results if one["case"] == "steady"}
    median = {size: total["median"] for size, total in steady.items()}
    by_queued = {queued: median[queued, options.nodes[-1]] for queued in options.queued}
    by_nodes = {nodes: median[options.queued[-1], nodes] for nodes in options.nodes}
    return {
        "result": "summary",
        "targets": [
            {"queued": queued, "nodes": nodes, "target_ms": most, **total, "met": total["median"] <= most}
            for (queued, nodes), most in TARGETS_MS.items()
            if (total := steady.get((queued, nodes)))
        ],
        # Exponents of growth, over all sizes and over the two largest; about 1 or less is near linear.
        "growth_with_queued": growth(by_queued),
        "growth_with_nodes": growth(by_nodes),
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def growth(times: dict[int, float]) -> Answer | None:
    if len(times) < 2:
        return None
    sizes, values = np.log(list(times)), np.log(list(times.values()))
    slopes = (np.polyfit(sizes[-last:], values[-last:], 1)[0] for last in (len(sizes), 2))
    return dict(zip(("all", "last_two"), (round(float(slope), 3) for slope in slopes), strict=True))


def plot(results: Sequence[Answer]) -> str:
    """Bars for each size: reading the rows above planning."""
    rows = []
    for one in (one for one in results if one["case"] == "steady"):
        values = (one["rows_ms"]["median"], one["plan_ms"]["median"])
        words = tuple(f"{name} {value:.1f}" for name, value in zip(("rows", "plan"), values, strict=True))
        rows.append(svg.BarRow(f"{one['queued']:,} on {one['nodes']:,} nodes", values, words, words))
    chart = svg.bar_chart(rows, title="A pass from rows to decisions", x_label="ms; queued jobs on nodes of 8 GPUs")
    return chart.replace(">", f">{svg.element('style', svg.STYLE)}", 1) + "\n"


if __name__ == "__main__":
    main()
