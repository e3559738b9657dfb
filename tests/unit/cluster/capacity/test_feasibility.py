"""A gang that a cluster can never hold is refused with the numbers."""

from __future__ import annotations

import pytest

from cluster.capacity.feasibility import check_can_ever_fit, workers_that_fit
from cluster.capacity.free_slots import FreeSlots
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.capacity.occupancy import Occupancy
from cluster.errors import CapacityError
from orchestrator.queue.tenants import Quota, Tenant
from orchestrator.scheduling.quota import check_within_limit

A100S = Inventory(tuple(Node(f"n{number}", cpus=32, gpus=8, accelerator_type="A100") for number in range(2)))


@pytest.mark.parametrize(
    ("gang", "fit"),
    [
        (Gang(1, cpus_per_worker=4, gpus_per_worker=1), 8),
        (Gang(1, cpus_per_worker=16, gpus_per_worker=1), 2),
        (Gang(1, cpus_per_worker=3), 10),
        (Gang(1, gpus_per_worker=1, accelerator_type="H100"), 0),
        (Gang(1, gpus_per_worker=1, accelerator_type="A100"), 8),
    ],
)
def test_a_node_holds_as_many_workers_as_its_scarcest_resource_allows(gang: Gang, fit: int) -> None:
    assert workers_that_fit(gang, A100S.nodes[0]) == fit


def test_a_gang_that_fits_the_empty_cluster_is_let_through() -> None:
    check_can_ever_fit(Gang(16, cpus_per_worker=4, gpus_per_worker=1), A100S)


@pytest.mark.parametrize(
    ("gang", "says"),
    [
        (Gang(17, gpus_per_worker=1), "the most that would fit is resources.num_workers: 16"),
        (Gang(1, gpus_per_worker=1, accelerator_type="H100"), "its accelerator types are: A100"),
        (Gang(1, cpus_per_worker=64, gpus_per_worker=1), "not one worker fits: the largest node has 8 GPUs and"),
        (Gang(1, gpus_per_worker=16, accelerator_type="A100"), "lower what a worker needs"),
    ],
)
def test_a_gang_that_can_never_fit_is_refused_with_what_would(gang: Gang, says: str) -> None:
    with pytest.raises(CapacityError, match=says) as caught:
        check_can_ever_fit(gang, A100S)
    assert "2 nodes with 64 CPUs and 16 GPUs" in str(caught.value)


def test_a_type_of_gpus_counts_only_for_a_gang_that_needs_gpus() -> None:
    without = Gang(2, gpus_per_worker=0, accelerator_type="H100")
    assert without == Gang(2)
    check_can_ever_fit(without, A100S)
    check_can_ever_fit(without, Inventory((Node("laptop", cpus=8),)))
    assert FreeSlots(Occupancy.of(A100S)).place(without) == ((0, 2),)


def test_gpus_on_a_cluster_without_any_are_refused_with_the_way_to_train_on_cpus() -> None:
    with pytest.raises(CapacityError, match=r"resources\.gpus_per_worker: 0"):
        check_can_ever_fit(Gang(1, gpus_per_worker=1), Inventory((Node("laptop", cpus=8),)))


@pytest.mark.parametrize(
    ("gang", "limit", "says"),
    [
        (Gang(9, gpus_per_worker=1), ((None, 8),), "at most 8 GPUs at once; the most that would start is .*workers: 8"),
        (Gang(3, gpus_per_worker=4, accelerator_type="A100"), (("A100", 9),), "at most 9 A100 GPUs .*workers: 2"),
        (Gang(1, gpus_per_worker=4), ((None, 2),), "not one worker fits"),
    ],
)
def test_a_gang_above_its_tenant_s_limit_is_refused(gang: Gang, limit: Quota, says: str) -> None:
    with pytest.raises(CapacityError, match=says):
        check_within_limit(gang, Tenant("vision", limit=limit))


@pytest.mark.parametrize("limit", [((None, 8),), (("A100", 4), (None, 8)), (("H100", 0),)])
def test_a_gang_within_its_tenant_s_limit_or_of_another_type_is_let_through(limit: Quota) -> None:
    check_within_limit(Gang(8, gpus_per_worker=1), Tenant("vision", limit=limit))
    check_within_limit(Gang(64), Tenant("vision", limit=limit))


def test_one_gang_is_on_nodes_of_one_accelerator_type() -> None:
    mixed = Inventory((Node("a", 32, 8, "A100"), Node("b", 32, 4, "H100")))
    with pytest.raises(CapacityError, match=r"the most that would fit is resources\.num_workers: 8"):
        check_can_ever_fit(Gang(12, gpus_per_worker=1), mixed)
