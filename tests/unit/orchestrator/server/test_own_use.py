"""What Fleetune itself uses of a Ray, whose own report is some seconds old."""

from __future__ import annotations

from typing import Any

from cluster.capacity.gang import Gang
from cluster.ray.nodes import inventory_of
from orchestrator.queue.records import Lease
from orchestrator.server.backends import OwnUse


class Leases:
    """The only part of a store that is read."""

    def __init__(self, *held: Lease) -> None:
        self.held = list(held)

    def leases(self, held: bool) -> list[Lease]:
        assert held
        return self.held


def lease(job_id: str, workers: int) -> Lease:
    return Lease(job_id, 1, "a", Gang(workers, 2, 1), (("n", workers),), 0.0, None)


def test_what_has_just_ended_is_not_taken_for_use_by_others() -> None:
    store, now_s = Leases(lease("one", 3), lease("two", 1)), [100.0]
    own = OwnUse(store, lambda: now_s[0])  # type: ignore[arg-type]  # not a whole store

    def foreign(used_gpus: float) -> int:
        node: dict[str, Any] = {"node_id": "n", "state": "ALIVE", "resources_total": {"CPU": 64, "GPU": 8}}
        return inventory_of([node], {"n": (0.0, used_gpus)}, own()).nodes[0].foreign_gpus

    assert foreign(5.0) == 1
    del store.held[1]
    now_s[0] += 1.0
    assert foreign(5.0) == 1  # Ray's report still contains the job that has ended
    now_s[0] += 5.0
    assert foreign(4.0) == 0  # the report without it: for a moment, use by others is too low
    now_s[0] += 5.0
    assert foreign(4.0) == 1
