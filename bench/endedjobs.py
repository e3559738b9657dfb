"""A store with a million jobs that have ended: pages, usage, the start of a new leader, and the removal of old jobs.

    python -m bench.endedjobs [--jobs 1000000] [--batches 50 200] [--prune-s 60] [--smoke]

SQLite and a made-up cluster. Lines for people go to stderr, one JSON object for each result to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.queueing import Answer, milliseconds, opened, submit, world
from orchestrator.controller.fair_share import counts_since_s
from orchestrator.queue.records import NodePlaces, Transition
from orchestrator.queue.states import Reason, State
from orchestrator.queue.store import Filter, Store
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.service.retention import BATCH
from tests.support.queuereplay import used_of

NOW_S = 1_000_000.0  # of the clock of `world`
SPAN_S = 8 * 86_400.0  # in which the jobs ended, so that all of them count for the shares of tenants
TENANTS = 20
HALF_LIFE_S = DEFAULT.share_half_life_s
LIFE: tuple[tuple[State, Reason, NodePlaces], ...] = (
    (State.STARTING, Reason.GRANTED, (("n0", 1),)),
    (State.RUNNING, Reason.ANSWERED, ()),
    (State.SUCCEEDED, Reason.FINISHED, ()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="that have ended, with four events each")
    parser.add_argument("--batches", type=int, nargs="+", default=[BATCH], help="jobs that one transaction removes")
    parser.add_argument("--prune-s", type=float, default=60.0, help="how long jobs are removed with each size of batch")
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args()
    jobs, prune_s = (2000, 0.5) if options.smoke else (options.jobs, options.prune_s)
    with tempfile.TemporaryDirectory() as folder:
        for result in results(Path(folder) / "queue.db", jobs, options.batches, prune_s):
            print(", ".join(f"{name} {value}" for name, value in result.items()), file=sys.stderr, flush=True)
            print(json.dumps(result), flush=True)


def results(path: Path, jobs: int, batches: list[int], prune_s: float) -> Iterator[Answer]:
    with contextlib.closing(opened(str(path))) as store:
        took_s = seconds(lambda: fill(store, path, jobs))
        yield {"result": "filled", "jobs": jobs, "seconds": took_s, "file_mib": round(path.stat().st_size / 2**20)}
        yield pages(store, jobs)
        yield adding_up(store, jobs)
    yield restart(path, jobs)
    with contextlib.closing(opened(str(path))) as store:
        for batch in batches:
            yield removing(store, batch, prune_s)


def fill(store: Store, path: Path, jobs: int) -> None:
    """Copy one job that has ended, with its spec, lease and events."""
    submit(store, 1)
    (job,) = store.jobs()
    epoch = epoch_of(store, 1.0)
    for to, reason, places in LIFE:
        step = Transition(job.job_id, job.state, job.attempt, to, reason, "", places)
        (job,) = store.apply_transitions(epoch, [step], 1.0)
    ended_s = f"({NOW_S - 60.0} - {SPAN_S} * (1.0 - n / {float(jobs)}))"
    began_s = f"({ended_s} - 1200.0 * (1 + n % 7))"
    job_id, change = "'job-' || substr('0000000' || n, -8)", f"{job.changed} + n"
    copies: dict[str, dict[str, str]] = {
        "jobs": {"number": "n", "job_id": job_id, "tenant": f"'t' || (n % {TENANTS})", "changed": change}
        | {"submitted_s": began_s, "ended_s": ended_s},
        "specs": {"number": "n", "spec": f"'{500 * 'x'}'"},
        "leases": {"number": change, "job": "n", "granted_s": began_s, "released_s": ended_s},
        "events": {"number": "number + 4 * n", "job_id": job_id, "at_s": ended_s},
    }
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute(f"CREATE TEMP TABLE n AS {upto(jobs)} SELECT n FROM numbers WHERE n > 1")
        for number in range(TENANTS):
            copy(raw, "tenants", {"name": f"'t{number}'", "number": str(number + 2)}, "tenants WHERE name = 'a'")
        for table, changed in copies.items():
            copy(raw, table, changed, f"{table} CROSS JOIN n")
            raw.commit()
        raw.execute(f"UPDATE queue SET last_change = {2 * jobs + 9}, last_job = {jobs}, last_event = {4 * jobs + 9}")
        raw.commit()
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def upto(last: int) -> str:
    return f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"


def copy(raw: sqlite3.Connection, table: str, changed: dict[str, str], source: str) -> None:
    """Insert rows that are there again, some columns of which have other values."""
    names = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
    columns = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(changed.get(name, f'{table}."{name}"') for name in names)
    raw.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM {source}")


def pages(store: Store, jobs: int) -> Answer:
    acts: dict[str, Callable[[], object]] = {
        "newest": lambda: store.jobs(limit=100),
        "in_the_middle": lambda: store.jobs(before=jobs // 2, limit=100),
        "of_a_tenant": lambda: store.jobs(Filter(tenant="t1"), before=jobs // 2),
        "none_found": lambda: store.jobs(Filter(states=(State.FAILED,))),
        "counts": lambda: store.count(),
        "counts_of_a_tenant": lambda: store.count(Filter(tenant="t1")),
    }
    return {"result": "pages", "jobs": jobs} | {f"{name}_ms": milliseconds(act) for name, act in acts.items()}


def adding_up(store: Store, jobs: int) -> Answer:
    """What a new leader, `why` and `usage` add up, and to read the leases one by one instead."""
    found: dict[str, float] = {}
    exact: dict[str, float] = {}
    since_s = counts_since_s(NOW_S, HALF_LIFE_S)
    took = {
        **timed("decayed_use", lambda: found.update(store.decayed_use(NOW_S, HALF_LIFE_S))),
        **timed("month", lambda: store.month_totals(NOW_S, NOW_S)),
        **timed("one_by_one", lambda: exact.update(used_of(store.leases(since_s=since_s), NOW_S, HALF_LIFE_S))),
    }
    off = max(abs(found[tenant] / used - 1.0) for tenant, used in exact.items())
    return {"result": "adding_up", "leases": jobs, **took, "largest_error": float(f"{off:.2g}")}


def restart(path: Path, jobs: int) -> Answer:
    """From opening the store to the end of the first pass, with a queue that has nothing else to do."""

    def start() -> None:
        with world(str(path)) as (_, _, server):
            server.step()

    return {"result": "restart", "jobs": jobs, **timed("first_pass_after", start)}


def removing(store: Store, batch: int, most_s: float) -> Answer:
    """Remove batches one after the other, while another thread submits."""
    epoch = epoch_of(store, NOW_S + 7200.0)  # once the term of the server of `restart` is over
    stop, waits = threading.Event(), list[float]()

    def submitting() -> None:
        while not stop.is_set():
            waits.append(seconds(lambda: submit(store, 1)))
            stop.wait(0.05)

    other = threading.Thread(target=submitting)
    other.start()
    began, cpu_s, removed, longest_s = time.perf_counter(), time.process_time(), 0, 0.0
    try:
        while time.perf_counter() - began < most_s:
            before = time.perf_counter()
            found = store.prunable(NOW_S, batch)
            if not found:
                break
            store.prune(epoch, [job_id for job_id, _ in found], NOW_S)
            removed += len(found)
            longest_s = max(longest_s, time.perf_counter() - before)
        took_s = time.perf_counter() - began
    finally:
        stop.set()
        other.join()
    answer = {"result": "removing", "batch": batch, "removed": removed, "jobs_per_s": round(removed / took_s)}
    waits.sort()
    answer |= {
        "cpu_s": round(time.process_time() - cpu_s, 2),
        "longest_batch_s": round(longest_s, 3),
        "submissions": len(waits),
    }
    return answer | {"median_submission_s": waits[len(waits) // 2], "longest_submission_s": waits[-1]}


def epoch_of(store: Store, now_s: float) -> int:
    leadership = store.lead("bench", "http://bench", now_s, 3600.0)
    assert leadership is not None
    return leadership.epoch


def timed(name: str, act: Callable[[], object]) -> Answer:
    """By the clock, and of this process's CPU time, which tells more on a machine that is busy."""
    began_s = time.process_time()
    took_s = seconds(act)
    return {f"{name}_s": round(took_s, 2), f"{name}_cpu_s": round(time.process_time() - began_s, 2)}


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return round(time.perf_counter() - began, 4)


if __name__ == "__main__":
    main()
