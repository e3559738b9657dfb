"""The machines of a gang, from what its nodes answer."""

from __future__ import annotations

from cluster.local.machine import Hardware
from cluster.local.memory import Memory
from jobs.drivers.finetune.machines import places_of
from jobs.planning.accelerators import GIB
from jobs.spec.finetune import Spec


def hardware(limit_gib: int, used_gib: int = 0, gpu: str | None = None, gpu_gib: float = 0) -> Hardware:
    return Hardware(Memory(limit_gib * GIB, False, (), used_gib * GIB), gpu, int(gpu_gib * GIB))


def spec(gpus: int) -> Spec:
    return Spec.model_validate(
        {
            "model": {"path": "m", "task": "causal-lm"},
            "data": {"train": "t", "format": "text"},
            "resources": {"num_workers": 3, "gpus_per_worker": gpus},
        }
    )


def test_the_node_with_least_free_memory_and_the_one_with_most_workers_decide() -> None:
    places = places_of(spec(0), [hardware(100, 20), hardware(60, 10)], "abb")
    assert places is not None and (places.nodes, places.workers_per_node, places.gpu) == (2, 2, None)
    assert places.free_bytes == 47 * GIB


def test_the_size_of_a_gpu_tells_which_one_it_is_and_how_much_can_be_used() -> None:
    small = places_of(spec(1), [hardware(500, 0, "A100", 40), hardware(500, 0, "A100", 80)], "aab")
    assert small is not None and small.gpu is not None and small.gpu.name == "A100-40" and small.gpu.memory_gib == 39.3
    shared = places_of(spec(1), [hardware(500, 0, "A100", 78)], "aaa")
    assert shared is not None and shared.gpu is not None
    assert shared.gpu.name == "A100-80" and abs(shared.gpu.memory_gib - 78) < 0.01


def test_an_unknown_gpu_is_not_planned_for() -> None:
    assert places_of(spec(1), [hardware(500, 0, "X9", 80)], "aaa") is None
    assert places_of(spec(1), [hardware(500)], "aaa") is None


def test_gangs_of_a_sweep_share_the_memory_of_a_node_and_have_the_links_of_their_own_nodes() -> None:
    def nodes_and_workers(places: str) -> tuple[int, int]:
        found = places_of(spec(0), [hardware(100)] * 2, places)
        assert found is not None
        return found.nodes, found.workers_per_node

    assert nodes_and_workers("aaaaaabbb") == (1, 6), "each gang of three is on one node"
    assert nodes_and_workers("aaaaabbbb") == (2, 5), "the second gang is not"
