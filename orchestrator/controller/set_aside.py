"""Jobs that are set aside: a job that cannot be read or planned does not stop the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from cluster.capacity.inventory import Inventory, Node
from orchestrator.queue.records import Job, Lease, QueueEvent, UnreadableRow
from orchestrator.queue.states import State
from orchestrator.queue.store import Store

KIND: Final = "set-aside"  # kind of the event
_MOST_BLAMED: Final = 10  # most jobs to blame in one pass; each takes several plans to find
_EVENTS_LOOKED_AT: Final = 1000
Result = TypeVar("Result")


class SetAside:
    """The jobs that one leadership has set aside. A job that changes is tried again. Not thread-safe."""

    def __init__(self, store: Store, go_on: Callable[[], None]) -> None:
        """`go_on`: called before each write; raises NotLeader."""
        self._store, self._go_on = store, go_on
        self._jobs: dict[str, tuple[int, UnreadableRow]] = {}  # job id -> number of its change, and its row
        self.rows: tuple[UnreadableRow, ...] = ()  # the rows of `_jobs`; a tuple that other threads may read
        self._told: set[UnreadableRow] = set()

    def __contains__(self, job: Job) -> bool:
        known = self._jobs.get(job.job_id)
        return known is not None and known[0] == job.changed

    def look_again(self, jobs: Iterable[Job]) -> None:
        """Forget jobs that have changed or ended. `jobs`: all jobs that have not ended."""
        if self._jobs:
            current = {job.job_id: job.changed for job in jobs}
            self._jobs = {name: one for name, one in self._jobs.items() if current.get(name) == one[0]}
            self.rows = tuple(row for _, row in self._jobs.values())

    def note(self, job: Job, error: Exception, now_s: float) -> None:
        """Set a job aside, because planning it raised this error."""
        problem = f"it cannot be planned: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        row = UnreadableRow("job", job.job_id, job.tenant, problem)
        self._jobs[job.job_id] = (job.changed, row)
        self.rows = tuple(row for _, row in self._jobs.values())
        self.tell([row], now_s)

    def tell(self, rows: Iterable[UnreadableRow], now_s: float) -> None:
        """Add an event for each row, unless this or an earlier leader has done so."""
        for row in rows:
            if row in self._told:
                continue
            self._told.add(row)
            job_id = row.name if row.table == "job" else None
            data = {"table": row.table, "name": row.name, "problem": row.problem}
            known = self._store.events(job_id, limit=_EVENTS_LOOKED_AT) if job_id is not None else []
            if not any(event.kind == KIND and event.data == data for event in known):
                self._go_on()
                said = f"{row.table} {row.name} is set aside, and the others go on: {row.problem}"
                self._store.add_events([QueueEvent(now_s, KIND, said, job_id, data=data)])


def without_faulty(
    jobs: Sequence[Job], work: Callable[[Sequence[Job]], Result], note: Callable[[Job, Exception], None]
) -> Result:
    """Call `work` with the jobs. If it raises, note the waiting jobs that are the cause, and call it without them."""
    try:
        return work(jobs)
    except Exception:
        faulty = _blamed(jobs, work)
        if not faulty:
            raise
        for job, error in faulty:
            note(job, error)
        ids = {job.job_id for job, _ in faulty}
        return work([job for job in jobs if job.job_id not in ids])


def _blamed(jobs: Sequence[Job], work: Callable[[Sequence[Job]], object]) -> list[tuple[Job, Exception]]:
    """Find the waiting jobs that are the cause, by bisection; empty: jobs that hold leases are the cause."""

    def raised(some: Sequence[Job]) -> Exception | None:
        try:
            work(some)
        except Exception as error:
            return error
        return None

    waits = [job for job in jobs if job.state is State.QUEUED]
    rest = [job for job in jobs if job.state is not State.QUEUED]
    if raised(rest) is not None:
        return []
    found: list[tuple[Job, Exception]] = []
    while len(found) < _MOST_BLAMED and (error := raised([*rest, *waits])) is not None:
        low, high = 0, len(waits)  # the first `low` jobs can be planned, the first `high` cannot
        while high - low > 1:
            middle = (low + high) // 2
            one = raised([*rest, *waits[:middle]])
            low, high, error = (middle, high, error) if one is None else (low, middle, one)
        found.append((waits.pop(high - 1), error))
    return found


def held_aside(inventory: Inventory, leases: Iterable[Lease], known: Iterable[str]) -> Inventory:
    """Count leases of jobs that cannot be read as external use.

    Args:
        known: ids of the jobs that can be read.
    """
    ids = set(known)
    cpus, gpus = Counter[str](), Counter[str]()
    for lease in leases:
        for node, workers in lease.placement if lease.job_id not in ids else ():
            cpus[node] += workers * lease.gang.cpus_per_worker
            gpus[node] += workers * lease.gang.gpus_per_worker
    return replace(inventory, nodes=tuple(_with_foreign(node, cpus, gpus) for node in inventory.nodes))


def _with_foreign(node: Node, cpus: Counter[str], gpus: Counter[str]) -> Node:
    if not (cpus[node.node_id] or gpus[node.node_id]):
        return node
    return replace(
        node,
        foreign_cpus=min(node.foreign_cpus + cpus[node.node_id], node.cpus),
        foreign_gpus=min(node.foreign_gpus + gpus[node.node_id], node.gpus),
    )
