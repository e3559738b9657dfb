"""How far an autoscaler may take a cluster, and what it is told that is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.autoscaler import Autoscaler, growth_of
from cluster.bundles import in_words
from cluster.errors import BackendUnreachable, CapacityError, InputError
from cluster.inventory import Growth, Inventory, Node, NodeType
from cluster.placement import check_can_ever_fit, largest_gang
from cluster.resources import Gang
from orchestrator.queue.growing import growth_words, wish
from orchestrator.queue.ledger import Cluster
from orchestrator.queue.states import State, Wanted
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.scheduling.snapshot import Tenant
from tests.support.queuejobs import NOW_S, inventory, job

CONFIG = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "gpu": {"resources": {"CPU": 64, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 4},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 3},
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "unknown": {"node_config": {"InstanceType": "m5.large"}},
    },
}
HEAD = Node("h", 0)
H100 = Node("g0", 64, 8, "H100")


def grown(*nodes: Node, config: dict[str, Any] | None = None) -> Inventory:
    return Inventory(nodes, growth_of(config or CONFIG))


def test_what_may_be_added_is_read_from_the_file_of_the_autoscaler() -> None:
    found = grown(HEAD)
    assert found.more == ((Node("gpu", 64, 8, "H100"), 4), (Node("cpu", 16), 3)) and found.most_more == 5
    found = grown(HEAD, H100, replace(H100, node_id="g1"), Node("c0", 16))
    assert [count for _, count in found.more] == [2, 2] and found.most_more == 2
    assert grown(HEAD, Node("new", 0)).most_more == 5  # Ray says what it has a moment later
    assert Inventory((HEAD,)).more == () and Inventory((HEAD,)).most_more == 0


def test_a_head_that_looks_like_a_worker_is_no_worker() -> None:
    same = {"max_workers": 2, "head_node_type": "head", "available_node_types": {"worker": {"resources": {"CPU": 4}}}}
    same["available_node_types"]["head"] = {"resources": {"CPU": 4}}  # type: ignore[index]
    assert grown(Node("h", 4), config=same).more == ((Node("worker", 4), 2),)
    assert grown(Node("h", 4), Node("w", 4), config=same).more == ((Node("worker", 4), 1),)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "available_node_types"),
        ([1], "available_node_types"),
        ({**CONFIG, "max_workers": "many"}, "numbers"),
        ({"available_node_types": {"a": {"resources": {"CPU": "four"}}}}, "numbers"),
        ({"available_node_types": {"a": 1}}, "numbers"),
        ({"available_node_types": {"a": {"resources": 4}}}, "numbers"),
    ],
)
def test_what_is_no_such_file_is_said(config: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        growth_of(config)


def test_a_gang_fits_where_the_cluster_may_grow_to_hold_it() -> None:
    found = grown(HEAD, H100)
    check_can_ever_fit(Gang(32, 1, 1, "H100"), found)
    with pytest.raises(CapacityError, match=r"the most that would fit is resources\.num_workers: 32") as raised:
        check_can_ever_fit(Gang(33, 1, 1, "H100"), found)
    assert "may get 4 more (3 of gpu, 3 of cpu)" in str(raised.value)
    # Five nodes in all: two of them must then be of the type with GPUs.
    assert largest_gang(Gang(1, cpus_per_worker=16), grown(HEAD)) == 4 * 4 + 1
    with pytest.raises(CapacityError, match="its accelerator types are: H100"):
        check_can_ever_fit(Gang(1, 1, 1, "A100"), grown(HEAD))
    with pytest.raises(CapacityError, match="not one worker fits"):
        check_can_ever_fit(Gang(1, 65, 1), grown(HEAD))


GROWS = Growth((NodeType(Node("gpu", 64, 4), 3),), 10)


def wished(jobs: list[Any], there: Inventory, **more: Any) -> tuple[str, tuple[str, ...]]:
    cluster = Cluster(replace(there, growth=GROWS), (Tenant("a"), *more.pop("tenants", ())), **more)
    found = wish(jobs, {}, cluster, DEFAULT, NOW_S)
    return in_words(found.bundles), found.waiting


def test_an_autoscaler_is_told_what_runs_and_what_the_first_in_the_queue_need() -> None:
    runs = job("runs", State.RUNNING, 3)
    assert wished([runs], inventory(4)) == ("1 x (3 CPU, 3 GPU)", ())
    assert wished([runs, job("waits", gpus=2)], inventory(4)) == ("1 x (3 CPU, 3 GPU), 1 x (2 CPU, 2 GPU)", ("waits",))
    assert wished([], inventory(4)) == ("nothing", ())


def test_what_is_used_counts_as_it_lies_and_not_as_it_could_be_packed() -> None:
    """Two nodes with three of four GPUs in use have no room for two more, though eight less six are two."""
    runs = [job(f"r{number}", State.RUNNING, 3, on=((f"n{number}", 3),)) for number in range(2)]
    text, waiting = wished([*runs, job("waits", gpus=2)], inventory(4, 4))
    assert (text, waiting) == ("2 x (3 CPU, 3 GPU), 1 x (2 CPU, 2 GPU)", ("waits",))


def test_a_gang_of_several_nodes_is_asked_for_node_by_node() -> None:
    assert wished([job("large", gpus=10)], inventory(4)) == (
        "2 x (4 CPU, 4 GPU), 1 x (2 CPU, 2 GPU)",
        ("large",),
    )


def test_only_those_are_asked_for_that_fit_into_the_largest_cluster_in_their_order() -> None:
    runs = [job("runs", State.RUNNING, 4)]
    waits = [job(f"w{number}", gpus=8, priority=-number) for number in range(3)]  # 8 of 12 GPUs each
    assert wished([*runs, *waits, job("small", priority=-9)], inventory(4))[1] == ("w0",)


def test_nobody_is_asked_for_who_would_not_start_all_the_same() -> None:
    limited = Tenant("b", limit=((None, 4),))
    jobs = [
        job("paused", wanted=Wanted.PAUSE),
        job("within", tenant="b", gpus=3),
        job("beyond", tenant="b", gpus=2),
        job("other", gpus=4),
    ]
    assert set(wished(jobs, inventory(), tenants=(limited,))[1]) == {"within", "other"}


def test_nodes_that_take_nothing_new_and_what_others_use_are_no_room() -> None:
    there = Inventory((Node("n0", 64, 4, foreign_gpus=1, foreign_cpus=2), Node("n1", 64, 4)))
    text, waiting = wished([job("waits", gpus=4)], there, closed=frozenset({"n1"}))
    assert waiting == ("waits",) and text == "1 x (2 CPU, 1 GPU), 1 x (64 CPU, 4 GPU), 1 x (4 CPU, 4 GPU)"


def test_a_node_that_has_only_just_come_is_what_was_asked_for() -> None:
    came = Inventory(tuple(Node(f"n{number}", 64, 4, usable=False) for number in range(3)))
    assert wished([job("waits", gpus=4)], came) == ("1 x (4 CPU, 4 GPU)", ("waits",))


def test_without_an_autoscaler_nobody_is_told() -> None:
    assert wish([job("waits", gpus=4)], {}, Cluster(inventory(1), (Tenant("a"),)), DEFAULT, NOW_S).bundles == ()
    assert growth_words(inventory(1)) == ""
    assert "may add 3 more nodes (3 x gpu: 64 CPU, 4 GPU)" in growth_words(replace(inventory(1), growth=GROWS))
    full = replace(inventory(4), growth=Growth((NodeType(Node("gpu", 64, 4), 1),), 1))
    assert "all the nodes that it may" in growth_words(full)


def test_a_file_that_changes_is_read_again_and_one_that_breaks_is_not(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("max_workers: 2\navailable_node_types: {a: {resources: {CPU: 4}}}\n")
    autoscaler = Autoscaler(lambda: "session", "nowhere:1", file)
    autoscaler.check()
    assert autoscaler.growth().most_nodes == 3
    file.write_text("max_workers: 31\navailable_node_types: {a: {resources: {CPU: 4}}}\n")
    assert autoscaler.growth().most_nodes == 32
    file.write_text("max_workers: [\n")
    assert autoscaler.growth().most_nodes == 32
    with pytest.raises(InputError, match=r"--autoscaler .*cluster.yaml: it is no YAML"):
        autoscaler.check()
    file.unlink()
    assert autoscaler.growth().most_nodes == 32
    with pytest.raises(InputError, match="No such file"):
        autoscaler.check()


def test_where_the_machines_do_not_answer_it_is_as_it_was() -> None:
    def silent() -> str:
        raise BackendUnreachable("no")

    assert Autoscaler(silent, "nowhere:1").growth() == Growth()
