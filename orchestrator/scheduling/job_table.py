"""The waiting and running jobs as a table of columns, the input of a plan."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.gang import Gang

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


def slots_of(gang: Gang) -> int:
    """Return the GPUs of a gang, or its CPUs if it needs no GPU."""
    return gang.num_workers * (gang.gpus_per_worker or gang.cpus_per_worker)


# States of a job. NOBODY: the row has no job. HELD: it waits for something other than slots: another job, or its owner.
# Plain integers, since looking up a member of an enumeration takes longer than comparing a column.
NOBODY, WAITING, RUNNING, HELD = range(4)
_LEAST_ROWS, _LOOK_EVERY = 64, 64


@dataclass
class JobTable:
    """One row for each job that has not ended, and spare rows. A job keeps its row; times are seconds of one clock.

    Attributes:
        gangs: the distinct gangs; the column `gang` holds indices into this list.
        state: NOBODY, WAITING, RUNNING or HELD.
        tenant: index into the snapshot's tenants.
        priority: the priority class; higher goes first.
        size: slots that the gang holds: its GPUs, or its CPUs if it needs no GPU.
        submitted_s: when the job was submitted.
        waiting_since_s: start of the current wait; valid for WAITING jobs.
        waited_s: total of earlier waits, between attempts.
        not_before_s: earliest start.
        started_s: when the job got its nodes; valid for RUNNING jobs.
        attained_s: total running time of earlier attempts.
        remaining_s: remaining running time as the run measures it (steps left x step time); NaN: unknown.
        most_left_s: remaining running time under the job's max_runtime_s; inf: no maximum.
        preemptible: whether the job may be interrupted.
        interruptions: number of interruptions so far.
        interruption_cost_s: cost of an interruption now: saving, starting again, and the work since the newest
            checkpoint if none can be saved.
    """

    gangs: list[Gang] = field(default_factory=list)
    state: NDArray[np.int8] = field(init=False, metadata={"nothing": np.int8(NOBODY)})
    tenant: NDArray[np.int32] = field(init=False, metadata={"nothing": np.int32(0)})
    priority: NDArray[np.int32] = field(init=False, metadata={"nothing": np.int32(0)})
    gang: NDArray[np.int32] = field(init=False, metadata={"nothing": np.int32(0)})
    size: Floats = field(init=False, metadata={"nothing": np.float64(1.0)})
    submitted_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})
    waiting_since_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})
    waited_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})
    not_before_s: Floats = field(init=False, metadata={"nothing": np.float64(-np.inf)})
    started_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})
    attained_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})
    remaining_s: Floats = field(init=False, metadata={"nothing": np.float64(np.nan)})
    most_left_s: Floats = field(init=False, metadata={"nothing": np.float64(np.inf)})
    preemptible: NDArray[np.bool_] = field(init=False, metadata={"nothing": np.bool_(False)})
    interruptions: NDArray[np.int32] = field(init=False, metadata={"nothing": np.int32(0)})
    interruption_cost_s: Floats = field(init=False, metadata={"nothing": np.float64(0.0)})

    def __post_init__(self) -> None:
        for name, nothing in COLUMNS.items():
            setattr(self, name, np.full(0, nothing))
        self._spare: list[int] = []  # heap of rows without a job
        self._removed = 0
        self._powered: dict[float, Floats] = {}  # exponent -> [gangs]
        self._codes: dict[Gang, int] = {gang: code for code, gang in enumerate(self.gangs)}

    @property
    def rows(self) -> int:
        return len(self.state)

    def code(self, gang: Gang) -> int:
        """Return the index of a gang in `gangs`, adding it if it is new."""
        code = self._codes.setdefault(gang, len(self.gangs))
        if code == len(self.gangs):
            self.gangs.append(gang)
        return code

    def powered_sizes(self, exponent: float) -> Floats:
        """[rows]; `size` to a power, computed once per distinct gang since powers are slow."""
        known = self._powered.get(exponent)
        if known is None or len(known) != len(self.gangs):
            known = self._powered[exponent] = self.sizes() ** exponent
        return known[self.gang]

    def sizes(self) -> Floats:
        """[gangs]; slots of each gang."""
        return np.array([slots_of(gang) for gang in self.gangs] or [1], float)

    def add(self, gang: Gang, **values: float) -> int:
        """Add a job and return its row. Columns that are not given keep the value of a row without a job."""
        if not self._spare:
            self._grow()
        row = heapq.heappop(self._spare)  # the lowest row, so that the table can be cut at its end
        self.gang[row] = self.code(gang)
        self.size[row] = slots_of(gang)
        for name, value in values.items():
            getattr(self, name)[row] = value
        return row

    def remove(self, row: int) -> None:
        for name, nothing in COLUMNS.items():
            getattr(self, name)[row] = nothing
        heapq.heappush(self._spare, row)
        self._removed += 1
        if self._removed % _LOOK_EVERY == 0:
            self._cut()

    def fill(self, columns: dict[str, NDArray[np.generic]]) -> None:
        """Replace all rows by columns of one length. Missing columns have the value of a row without a job."""
        length = len(next(iter(columns.values())))
        for name, nothing in COLUMNS.items():
            given = columns.get(name)
            setattr(self, name, np.full(length, nothing) if given is None else np.asarray(given, nothing.dtype))
        self._spare = []

    def gang_of(self, row: int) -> Gang:
        return self.gangs[int(self.gang[row])]

    def resize(self, row: int, num_workers: int) -> Gang:
        """Change a job's number of workers. Returns its new gang."""
        gang = replace(self.gang_of(row), num_workers=num_workers)
        self.gang[row], self.size[row] = self.code(gang), slots_of(gang)
        return gang

    def copy(self) -> JobTable:
        """Return another table with the same jobs in the same rows."""
        other = JobTable(list(self.gangs))
        for name in COLUMNS:
            setattr(other, name, getattr(self, name).copy())
        other._spare = list(self._spare)
        return other

    def _grow(self) -> None:
        before = self.rows
        for name, nothing in COLUMNS.items():
            more = np.full(max(before // 4, _LEAST_ROWS), nothing)
            setattr(self, name, np.concatenate((getattr(self, name), more)))
        self._spare = list(range(before, self.rows))

    def _cut(self) -> None:
        """Drop rows at the end if many have no job: a plan goes through all rows many times."""
        used = self.state.nonzero()[0]
        rows = (int(used[-1]) if len(used) else 0) + _LEAST_ROWS
        if rows < 0.75 * self.rows:
            for name in COLUMNS:
                setattr(self, name, getattr(self, name)[:rows].copy())
            self._spare = [row for row in self._spare if row < rows]
            heapq.heapify(self._spare)


# name -> value in a row without a job, of the column's type
COLUMNS: dict[str, np.generic] = {one.name: one.metadata["nothing"] for one in fields(JobTable) if one.metadata}
