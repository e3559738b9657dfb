"""What others than Fleetune use of a Ray, whose own report is some seconds old."""

from __future__ import annotations

from cluster.capacity.gang import Gang
from orchestrator.queue.records import Lease
from orchestrator.server.backends import ForeignUse


class Leases:
    """The only part of a store that is read."""

    def __init__(self, *held: Lease) -> None:
        self.held = list(held)

    def leases(self, held: bool) -> list[Lease]:
        assert held
        return self.held


class Cluster:
    """A node of 8 GPUs, the leases on it, and what its Ray reports."""

    def __init__(self, *held: Lease) -> None:
        self.store, self.now_s = Leases(*held), 1000.0
        self.foreign = ForeignUse(self.store, lambda: self.now_s)  # type: ignore[arg-type]  # not a whole store

    def after(self, seconds: float, reported: float) -> float:
        """Return the GPUs that others use, if Ray reports this use."""
        self.now_s += seconds
        return self.foreign({"n": (0.0, reported), "other": (0.0, 0.0)})["n"][1]


def lease(job_id: str, workers: int, granted_s: float = 0.0) -> Lease:
    return Lease(job_id, 1, "a", Gang(workers, 2, 1), (("n", workers),), granted_s, None)


def test_a_gang_that_ends_changes_nothing_whether_the_report_still_contains_it_or_not() -> None:
    cluster = Cluster(lease("one", 3), lease("two", 1))
    assert cluster.after(0.0, 5.0) == 1
    del cluster.store.held[1]
    assert cluster.after(1.0, 5.0) == 1  # the report still contains it
    assert cluster.after(1.0, 4.0) == 1
    assert cluster.after(1.0, 5.0) == 1  # another node of Ray's answers
    assert cluster.after(20.0, 4.0) == 1
    assert cluster.after(1.0, 5.0) == 2  # only others can have taken it


def test_a_gang_that_starts_changes_nothing_whether_it_has_taken_its_places_or_not() -> None:
    cluster = Cluster()
    assert cluster.after(0.0, 3.0) == 3
    cluster.store.held = [lease("one", 2, granted_s=cluster.now_s)]
    assert [cluster.after(1.0, reported) for reported in (3.0, 3.0, 5.0, 3.0, 5.0)] == [3] * 5
    assert cluster.after(1.0, 6.0) == 4  # more than both together
    assert cluster.after(1.0, 1.0) == 1  # less than others had
    assert cluster.after(120.0, 3.0) == 1  # by now it has taken its places
    assert cluster.after(1.0, 1.0) == 0


def test_a_server_that_starts_counts_its_own_gangs_as_its_own() -> None:
    assert Cluster(lease("one", 3, granted_s=999.0)).after(0.0, 4.0) == 1
    assert Cluster(lease("one", 3)).after(0.0, 2.0) == 0
