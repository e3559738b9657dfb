"""The queue: submitting against raw SQLite, with and without HTTP; admissions, restart, pages, memory.

    python -m bench.queueing [--jobs 100000] [--smoke]

Machines are made up. Lines for people go to stderr, one JSON object for each result to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx

from cluster.backend import Launch
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.testing import FakeBackend, FakeClock, FakeCluster, served
from jobs.spec.command import CommandSpec
from orchestrator import Client
from orchestrator.controller.controller import Controller
from orchestrator.controller.leadership import LeaderElection
from orchestrator.queue.records import Job, NewJob
from orchestrator.queue.states import State
from orchestrator.queue.store import Filter, Store
from orchestrator.queue.tenants import Tenant
from orchestrator.store import open_store

Answer = dict[str, Any]

NODES, GPUS_PER_NODE = 64, 8
SENT: Answer = {"kind": "command", "name": "job", "command": ["python", "-m", "something", 2000 * "x"]}
SENT |= {"resources": {"gpus_per_worker": 1}}
SPEC = json.dumps(SENT)
BULK, CLIENTS = 1000, 8
UP_WITHIN_S = 60.0
RAW = """
CREATE TABLE jobs (number INTEGER PRIMARY KEY, job_id TEXT UNIQUE, tenant TEXT, state TEXT, spec TEXT);
CREATE TABLE events (number INTEGER PRIMARY KEY, job_id TEXT, message TEXT);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="in the store, for pages; half of them for a restart")
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args()
    jobs = 2000 if options.smoke else options.jobs
    with tempfile.TemporaryDirectory() as folder:
        for result in results(Path(folder), jobs, rounds=1 if options.smoke else 5):
            print(", ".join(f"{name} {value}" for name, value in result.items()), file=sys.stderr, flush=True)
            print(json.dumps(result), flush=True)
    print(json.dumps({"result": "machine", "cores": os.cpu_count(), "python": platform.python_version()}), flush=True)


def results(folder: Path, jobs: int, rounds: int) -> Iterator[Answer]:
    yield submitting(folder, rounds)
    yield submitting_over_http(folder / "http", rounds)
    yield admissions(folder / "admissions.db", jobs // 20)
    yield from of_many(folder / "many.db", jobs)
    yield memory(folder / "memory.db", jobs // 10)


def submitting(folder: Path, rounds: int) -> Answer:
    """Jobs/s, one by one and in bulk, in turns with a raw connection that inserts a row and an event a job."""
    found: dict[str, list[float]] = {"store": [], "raw": [], "store_bulk": [], "raw_bulk": []}
    for number in range(rounds):
        store, raw = opened(str(folder / f"store-{number}.db")), raw_database(folder / f"raw-{number}.db")
        with contextlib.closing(store), contextlib.closing(raw):
            for name, act in (("store", partial(submit, store)), ("raw", partial(insert, raw))):
                found[name].append(rate(300, partial(act, 1)))
                found[f"{name}_bulk"].append(BULK * rate(3, partial(act, BULK)))
    pairs = (("one_by_one", "store", "raw"), ("in_bulk", "store_bulk", "raw_bulk"))
    return {"result": "submitting", **medians(found), **ratios(found, pairs)}


def submitting_over_http(folder: Path, rounds: int) -> Answer:
    """The same to a server that is a process of its own: by one client, by several at once, and by our own SDK.

    The client is the standard library's: what it takes is hardly seen beside what the server does.
    """
    names = ("http", "raw", "http_at_once", "sdk", "http_bulk", "raw_bulk")
    found: dict[str, list[float]] = {name: [] for name in names}
    with server(folder) as url, contextlib.closing(raw_database(folder / "raw.db")) as raw, Client(url) as sdk:
        spec = CommandSpec.model_validate(SENT)
        for number in range(rounds):
            http = sender(url)
            post(http, [SENT])
            found["http"].append(rate(300, partial(post, http, [SENT])))
            found["raw"].append(rate(300, partial(insert, raw, 1)))
            found["http_at_once"].append(at_once(url, 75))
            found["sdk"].append(rate(300, partial(sdk.submit, spec)))
            # Searches are like that: all the same but for a word.
            bulk = [SENT | {"name": f"job-{number}", "env": {"TRIAL": str(trial)}} for trial in range(BULK)]
            http = sender(url)  # the server ends connections that were not used for seconds
            found["http_bulk"].append(BULK * rate(3, partial(post, http, bulk)))
            found["raw_bulk"].append(BULK * rate(3, partial(insert, raw, BULK)))
    pairs = [("one_by_one", "http", "raw"), ("at_once", "http_at_once", "raw"), ("by_sdk", "sdk", "raw")]
    pairs.append(("in_bulk", "http_bulk", "raw_bulk"))
    return {"result": "submitting_over_http", **medians(found), **ratios(found, pairs)}


def medians(rates: dict[str, list[float]]) -> Answer:
    return {f"{name}_jobs_per_s": round(statistics.median(values)) for name, values in rates.items()}


def ratios(rates: dict[str, list[float]], pairs: Iterable[tuple[str, str, str]]) -> Answer:
    """Of rounds, so that a machine whose speed varies does not tell."""
    found = {name: [a / b for a, b in zip(rates[ours], rates[raw], strict=True)] for name, ours, raw in pairs}
    return {f"{name}_of_raw": round(statistics.median(values), 3) for name, values in found.items()}


def sender(url: str) -> HTTPConnection:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60.0)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def post(http: HTTPConnection, specs: list[Answer]) -> None:
    http.request("POST", "/v1/jobs", json.dumps({"specs": specs}), {"Content-Type": "application/json"})
    answer = http.getresponse()
    text = answer.read()
    assert answer.status == 201, text


def at_once(url: str, jobs: int) -> float:
    """Jobs/s by some clients, each of which sends so many, one after the other."""

    def send(http: HTTPConnection) -> None:
        for _ in range(jobs):
            post(http, [SENT])

    connections = [sender(url) for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        began = time.perf_counter()
        list(pool.map(send, connections))
        return CLIENTS * jobs / (time.perf_counter() - began)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of a `fleetune serve` of its own, whose machines are made up and full."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with served(folder, "--nodes", "2", "--rate", "1.0", "--runs-s", "1000000"):
        command = [sys.executable, "-c", "from orchestrator.cli.app import main; main()", "serve"]
        command += ["--store", str(folder / "queue.db"), "--port", url.rpartition(":")[2]]
        command += ["--address", f"fake:{folder / 'cluster'}"]
        environment, log = {**os.environ, "FLEETUNE_HOME": str(folder)}, folder / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(30.0)


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not come up:\n{log.read_text()}")
        time.sleep(0.05)


def admissions(path: Path, jobs: int) -> Answer:
    """Gangs that were admitted a second, store and made-up cluster included, while a queue of so many is worked off."""
    with world(str(path)) as (store, clock, server):
        for _ in range(0, jobs, BULK):
            submit(store, min(BULK, jobs))
        began, passes = time.perf_counter(), 0
        while store.count().get(State.QUEUED, 0):
            clock.advance(1.0)
            server.step()
            passes += 1
        took_s = time.perf_counter() - began
        admitted = len(store.leases())
    return {"result": "admissions", "queued": jobs, "admitted_per_s": round(admitted / took_s), "passes": passes}


def of_many(path: Path, jobs: int) -> Iterator[Answer]:
    with contextlib.closing(opened(str(path))) as store:
        for _ in range(0, jobs, BULK):
            submit(store, min(BULK, jobs))
        last = store.jobs(limit=1)[0].number
        pages = {
            "newest": lambda: store.jobs(limit=100),
            "in_the_middle": lambda: store.jobs(before=last // 2, limit=100),
            "of_a_state": lambda: store.jobs(Filter(states=(State.QUEUED,)), before=last // 2),
            "of_a_tenant": lambda: store.jobs(Filter(tenant="a"), before=last // 2),
            "by_name": lambda: store.jobs(Filter(name=store.jobs(limit=1)[0].job_id[:8])),
            "none_found": lambda: store.jobs(Filter(states=(State.FAILED,))),
            "counts": lambda: store.count(),
        }
        yield {"result": "pages", "jobs": jobs} | {f"{name}_ms": milliseconds(page) for name, page in pages.items()}
    half = path.with_name("half.db")
    with contextlib.closing(opened(str(half))) as store:
        for _ in range(0, jobs // 2, BULK):
            submit(store, min(BULK, jobs // 2))
    began = time.perf_counter()
    with world(str(half)) as (_, _, server):
        server.step()
        took_s = time.perf_counter() - began
    yield {"result": "restart", "jobs": jobs // 2, "first_pass_after_s": round(took_s, 3)}


def memory(path: Path, jobs: int) -> Answer:
    """Resident memory after a tenth of the jobs and after all of them, each of which comes and goes."""
    with world(str(path)) as (store, clock, server):
        marks = []
        for done in range(10):
            store.submit([new() for _ in range(jobs // 10)], clock())
            while store.count().keys() - {State.SUCCEEDED}:
                clock.advance(30.0)
                server.step()
            if done in (1, 9):
                marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"result": "memory", "jobs": jobs, "after_a_fifth_mib": round(marks[0]), "after_all_mib": round(marks[1])}


@contextlib.contextmanager
def world(url: str) -> Iterator[tuple[Store, FakeClock, Controller]]:
    clock = FakeClock(1_000_000.0)
    nodes = Inventory(tuple(Node(f"n{number}", 64, GPUS_PER_NODE) for number in range(NODES)))
    backend = FakeBackend(FakeCluster(nodes, clock))
    backend.script("*", runs_s=2.0)
    with contextlib.closing(opened(url)) as store:
        election = LeaderElection(store, clock, "bench", "http://bench", 3600.0)
        yield store, clock, Controller(store, backend, clock, election, launch_of)


def launch_of(job: Job) -> Launch:
    return Launch(job.submission, ("python", "-m", "something"))


def opened(url: str) -> Store:
    store = open_store(url)
    store.put_tenant(Tenant("a"), 1.0)
    return store


def new() -> NewJob:
    return NewJob("job", "command", "a", SPEC, Gang(1, 1, 1), "bench")


def raw_database(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {RAW}")
    return raw


_INSERTED = iter(range(10**9))


def submit(store: Store, jobs: int) -> None:
    store.submit([new() for _ in range(jobs)], 1.0)


def insert(raw: sqlite3.Connection, jobs: int) -> None:
    """What any store must do at least: a row and an event for each, in one transaction."""
    ids = [f"job-{next(_INSERTED)}" for _ in range(jobs)]
    raw.execute("BEGIN IMMEDIATE")
    raw.executemany(
        "INSERT INTO jobs (job_id, tenant, state, spec) VALUES (?, 'a', 'queued', ?)", [(one, SPEC) for one in ids]
    )
    raw.executemany("INSERT INTO events (job_id, message) VALUES (?, 'submitted')", [(one,) for one in ids])
    raw.execute("COMMIT")


def rate(times: int, act: Callable[[], object]) -> float:
    """How often a second."""
    began = time.perf_counter()
    for _ in range(times):
        act()
    return times / (time.perf_counter() - began)


def milliseconds(act: Callable[[], object]) -> float:
    act()
    return round(1000.0 / rate(5, act), 2)


if __name__ == "__main__":
    main()
