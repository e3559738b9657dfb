"""How far an autoscaler may take a cluster, and what it is told that is wanted."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.capacity.feasibility import check_can_ever_fit, largest_gang
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Growth, Inventory, Node, NodeType
from cluster.errors import BackendUnreachable, CapacityError, InputError, MachinesFailed
from cluster.ray.autoscaler import Autoscaler, config_file, growth_of, read_growth
from cluster.ray.raylets import Process
from orchestrator.controller.autoscaler_demand import Demand, demand, format_growth
from orchestrator.controller.ledger import Cluster
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.server.ray_updates import DemandUpdates
from tests.support.queuejobs import NOW_S, inventory, job

CONFIG = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "gpu": {"resources": {"CPU": 64, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 4},
        "cpu": {"resources": {"CPU": "16"}, "max_workers": 3.0},
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "unknown": {"node_config": {"InstanceType": "m5.large"}},
    },
}
HEAD = Node("h", 0)
H100 = Node("g0", 64, 8, "H100")


def grown(*nodes: Node, config: dict[str, Any] | None = None) -> Inventory:
    return Inventory(nodes, growth_of(config or CONFIG))


def more(found: Inventory) -> list[tuple[str, str | None, int]]:
    return [(kind.node.node_id, kind.node.accelerator_type, count) for kind, count in found.more]


def test_what_may_be_added_is_read_from_the_file_of_the_autoscaler() -> None:
    found = grown(HEAD)
    assert more(found) == [("gpu", "H100", 4), ("cpu", None, 3)] and found.most_more == 5
    found = grown(HEAD, H100, replace(H100, node_id="g1"), Node("c0", 16))
    assert more(found) == [("gpu", "H100", 2), ("cpu", None, 2)] and found.most_more == 2
    assert grown(HEAD, Node("new", 0)).most_more == 5  # Ray says what it has a moment later
    assert grown(HEAD, Node("joined by hand", 3)).most_more == 5
    assert Inventory((HEAD,)).more == () and Inventory((HEAD,)).most_more == 0


def test_a_head_that_looks_like_a_worker_is_no_worker() -> None:
    types = {"worker": {"resources": {"CPU": 4}}, "head": {"resources": {"CPU": 4}}}
    same = {"max_workers": 2, "head_node_type": "head", "available_node_types": types}
    assert more(grown(Node("h", 4), config=same)) == [("worker", None, 2)]
    assert more(grown(Node("h", 4), Node("w", 4), config=same)) == [("worker", None, 1)]


def test_types_that_look_alike_are_counted_one_after_the_other() -> None:
    types = {"spot": {"resources": {"CPU": 4}, "max_workers": 1}, "safe": {"resources": {"CPU": 4}, "max_workers": 2}}
    config = {"max_workers": 3, "available_node_types": types}
    assert more(grown(Node("a", 4), Node("b", 4), config=config)) == [("safe", None, 1)]
    assert grown(*(Node(str(number), 4) for number in range(4)), config=config).most_more == 0


def test_an_accelerator_that_only_a_label_or_a_living_node_names_is_known_and_not_asked_for() -> None:
    """KubeRay makes types out of pods, which have GPUs and no accelerator type."""
    labelled = {"resources": {"CPU": 8, "GPU": 8}, "labels": {"ray.io/accelerator-type": "H100"}, "max_workers": 2}
    found = grown(config={"max_workers": 2, "available_node_types": {"gpu": labelled}})
    check_can_ever_fit(Gang(16, 1, 1, "H100"), found)
    assert found.more[0][0].asks is None
    plain = {"max_workers": 2, "available_node_types": {"gpu": {"resources": {"CPU": 8, "GPU": 8}}}}
    there = Node("g0", 8, 8, "H100")
    assert more(grown(there, config=plain)) == [("gpu", "H100", 1)]
    assert grown(there, replace(there, node_id="g1"), config=plain).more == ()
    with pytest.raises(CapacityError):
        check_can_ever_fit(Gang(1, 1, 1, "H100"), grown(config=plain))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "available_node_types"),
        ([1], "available_node_types"),
        ({**CONFIG, "max_workers": "many"}, "max_workers: a number"),
        ({**CONFIG, "max_workers": float("inf")}, "max_workers: a number"),
        ({**CONFIG, "max_workers": -5}, "max_workers: a number"),
        ({"available_node_types": {"a": {"resources": {"CPU": "four"}}}}, "it is four"),
        ({"available_node_types": {"a": 1}}, "says nothing"),
        ({"available_node_types": {"a": {"resources": 4}}}, "names with values"),
        ({"available_node_types": {"a": {"resources": ["CPU"]}}}, "names with values"),
    ],
)
def test_what_is_no_such_file_is_said(config: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        growth_of(config)


def test_what_is_left_empty_is_as_if_it_was_left_out() -> None:
    types = {1: {"resources": {"CPU": 4, 1: 4}, "max_workers": None}, "b": {"resources": None}}
    assert growth_of({"max_workers": None, "available_node_types": types}) == Growth((NodeType(Node("1", 4), 2),), 2)


def test_a_gang_fits_where_the_cluster_may_grow_to_hold_it() -> None:
    found = grown(HEAD, H100)
    check_can_ever_fit(Gang(32, 1, 1, "H100"), found)
    with pytest.raises(CapacityError, match=r"the most that would fit is resources\.num_workers: 32") as raised:
        check_can_ever_fit(Gang(33, 1, 1, "H100"), found)
    assert "Ray's autoscaler may add 4 more nodes (at most 3 of gpu, 3 of cpu)" in str(raised.value)
    with pytest.raises(CapacityError, match="its accelerator types are: H100"):
        check_can_ever_fit(Gang(1, 1, 1, "A100"), grown(HEAD))
    with pytest.raises(CapacityError, match="not one worker fits"):
        check_can_ever_fit(Gang(1, 65, 1), grown(HEAD))


def test_a_gang_without_gpus_spans_only_nodes_without() -> None:
    assert largest_gang(Gang(1, cpus_per_worker=16), grown(HEAD)) == 4  # one node with GPUs, or three without
    assert largest_gang(Gang(1, cpus_per_worker=1), grown(HEAD)) == 64
    check_can_ever_fit(Gang(48), Inventory((Node("a", 16, 8), Node("b", 48))))
    with pytest.raises(CapacityError):
        check_can_ever_fit(Gang(20), Inventory((Node("a", 16, 8), Node("b", 16, 8))))


GROWS = Growth((NodeType(Node("gpu", 64, 4), 3),), 10)


def demanded(jobs: list[Any], there: Inventory, growth: Growth = GROWS, **more: Any) -> tuple[int, tuple[str, ...]]:
    """How many nodes of the first type, and for whom."""
    cluster = Cluster(replace(there, growth=growth), (Tenant("a"), *more.pop("tenants", ())), **more)
    found = demand(jobs, {}, cluster, DEFAULT, NOW_S)
    kind = growth.types[0]
    whole = {name: size for name, size in (("CPU", kind.node.cpus), ("GPU", kind.node.gpus)) if size}
    assert all(piece == whole for piece in found.bundles)
    return len(found.bundles), found.waiting


def test_an_autoscaler_is_told_what_runs_and_what_the_first_in_the_queue_need() -> None:
    runs = job("runs", State.RUNNING, 3)
    assert demanded([runs], inventory(4)) == (1, ())
    assert demanded([runs, job("waits", gpus=2)], inventory(4)) == (2, ("waits",))
    assert demanded([runs, job("waits", gpus=1)], inventory(4)) == (1, ("waits",))  # which starts at once
    assert demanded([], inventory(4)) == (0, ())


def test_what_is_used_counts_as_it_lies_and_not_as_it_could_be_packed() -> None:
    """Two nodes with two of four GPUs in use have no room for three more, though eight less four are four."""
    runs = [job(f"r{number}", State.RUNNING, 2, on=((f"n{number}", 2),)) for number in range(2)]
    assert demanded([*runs, job("waits", gpus=3)], inventory(4, 4)) == (3, ("waits",))


def test_a_gang_of_several_nodes_is_asked_for_node_by_node() -> None:
    assert demanded([job("large", gpus=10)], inventory(4)) == (3, ("large",))


def test_only_those_are_asked_for_that_fit_into_the_largest_cluster_in_their_order() -> None:
    runs = [job("runs", State.RUNNING, 4)]
    waits = [job(f"w{number}", gpus=8, priority=-number) for number in range(3)]  # 8 of 12 GPUs each
    assert demanded([*runs, *waits, job("small", priority=-9)], inventory(4)) == (3, ("w0",))


def test_no_more_nodes_are_asked_for_than_may_be_added_whatever_their_types() -> None:
    """Version 2 of Ray's takes a demand whole, or not at all."""
    types = (NodeType(Node("gpu", 64, 8), 2), NodeType(Node("cpu", 16), 2))
    cluster = Cluster(Inventory((), Growth(types, 2)), (Tenant("a"),))
    large, small = job("large", gpus=16, priority=1), replace(job("small"), gang=Gang(1, 16))
    found = demand([large, small], {}, cluster, DEFAULT, NOW_S)
    assert found.waiting == ("large",) and found.bundles == ({"CPU": 64, "GPU": 8},) * 2
    first = demand([large, replace(small, priority=2)], {}, cluster, DEFAULT, NOW_S)
    assert first.waiting == ("small",) and first.bundles == ({"CPU": 16},)


def test_what_could_not_start_on_the_largest_empty_cluster_holds_up_nobody() -> None:
    never = job("never", gpus=14, priority=9)  # of 12, since one node takes nothing new
    assert demanded([never, job("waits", gpus=4)], inventory(4), closed=frozenset({"n0"})) == (2, ("waits",))


def test_nobody_is_asked_for_who_would_not_start_all_the_same() -> None:
    limited = Tenant("b", limit=((None, 4),))
    jobs = [
        job("paused", wanted=DesiredState.PAUSE),
        job("within", tenant="b", gpus=3),
        job("beyond", tenant="b", gpus=2),
        job("other", gpus=4),
    ]
    assert set(demanded(jobs, inventory(), tenants=(limited,))[1]) == {"within", "other"}


def test_nodes_that_take_nothing_new_and_what_others_use_are_no_room() -> None:
    there = Inventory((Node("n0", 64, 4, foreign_gpus=1, foreign_cpus=2), Node("n1", 64, 4)))
    assert demanded([job("waits", gpus=4)], there, closed=frozenset({"n1"})) == (3, ("waits",))
    assert demanded([], there, closed=frozenset({"n1"})) == (0, ())


def test_a_node_that_has_only_just_come_is_what_was_asked_for() -> None:
    came = Inventory(tuple(Node(f"n{number}", 64, 4, usable=False) for number in range(3)))
    assert demanded([job("waits", gpus=4)], came) == (1, ("waits",))


def test_nodes_that_the_autoscaler_did_not_add_are_none_of_its_business() -> None:
    by_hand = Inventory((Node("n0", 32, 2),))
    assert demanded([job("runs", State.RUNNING, 2)], by_hand) == (0, ())
    assert demanded([job("runs", State.RUNNING, 2), job("waits", gpus=4)], by_hand) == (1, ("waits",))


def test_without_an_autoscaler_nobody_is_told() -> None:
    assert demand([job("waits", gpus=4)], {}, Cluster(inventory(1), (Tenant("a"),)), DEFAULT, NOW_S).bundles == ()
    assert format_growth(inventory(1)) == ""
    assert format_growth(replace(inventory(1), growth=GROWS)) == (
        "Ray's autoscaler may add 3 more nodes (3 x gpu: 64 CPU, 4 GPU)"
    )
    full = replace(inventory(4), growth=Growth((NodeType(Node("gpu", 64, 4), 1),), 1))
    assert "all the nodes that it may" in format_growth(full)


def test_a_file_that_changes_is_read_again_and_one_that_breaks_is_said(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("max_workers: 2\navailable_node_types: {a: {resources: {CPU: 4}}}\n")
    autoscaler = Autoscaler(lambda: "session", "nowhere:1", file)
    autoscaler.check()
    assert autoscaler.growth().most_nodes == 2 and autoscaler.trouble == ""
    file.write_text("max_workers: 31\navailable_node_types: {a: {resources: {CPU: 4}}}\n")
    assert autoscaler.growth().most_nodes == 31
    for broken, said in (
        ("max_workers: [\n", "it is no YAML"),
        ("[" * 20_000, "it is no YAML"),
        ("a: 1", "no available"),
    ):
        file.write_text(broken)
        assert autoscaler.growth().most_nodes == 31 and said in autoscaler.trouble
        with pytest.raises(InputError, match=f"--autoscaler .*cluster.yaml: .*{said}"):
            autoscaler.check()
    file.unlink()
    assert autoscaler.growth().most_nodes == 31 and "No such file" in autoscaler.trouble
    os.mkfifo(file)
    assert autoscaler.growth().most_nodes == 31 and "it is no file" in autoscaler.trouble


def test_a_file_that_is_far_too_large_is_none_of_rays(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("#" * (1 << 21))
    with pytest.raises(InputError, match="characters"):
        read_growth(tmp_path / "large")


def test_where_the_machines_do_not_answer_it_is_as_it_was() -> None:
    def silent() -> str:
        raise BackendUnreachable("no")

    assert Autoscaler(silent, "nowhere:1").growth() == Growth()


@pytest.mark.parametrize("given", ["~/ray_bootstrap_config.yaml", "config.yaml", "{home}/config.yaml"])
def test_the_file_is_found_by_the_command_line_of_rays_own_process(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray up` hands on a path that begins with ~, and only Ray's process knows what it means."""
    home = pwd.getpwuid(os.getuid()).pw_dir
    words = ["python", "-u", "/ray/autoscaler/v2/monitor.py", "--logs-dir=/tmp/ray/session_1/logs"]
    words.append(f"--autoscaling-config={given.format(home=home)}")
    found = [Process(os.getuid(), words, tmp_path), Process(12345, words, Path("/not/ours"))]
    monkeypatch.setattr("cluster.ray.autoscaler.command_lines", lambda: iter(found))
    wanted = {"~": f"{home}/ray_bootstrap_config.yaml", "c": f"{tmp_path}/config.yaml", "{": f"{home}/config.yaml"}
    assert config_file("session_1") == Path(wanted[given[0]])
    assert config_file("session_2") is None


def test_a_wish_is_told_until_it_was_heard_and_withdrawn_when_nobody_waits() -> None:
    said, asked = list[str](), list[int]()

    class Ray(Autoscaler):
        fails = 1

        def growth(self) -> Growth:
            return GROWS if self.grows else Growth()

        def ask(self, bundles: Any) -> str:
            asked.append(len(bundles))
            if len(asked) <= self.fails:
                raise MachinesFailed("no answer")
            return "session"

        grows = True

    ray, demands = Ray(lambda: "session", "nowhere:1"), [Demand(({"CPU": 4},), ("first",))]
    updates = DemandUpdates(ray, lambda: demands[-1], said.append)

    def tell() -> None:
        updates._not_before_s = 0.0
        updates()
        if updates._thread is not None:
            updates._thread.join()

    tell()
    demands.append(Demand())  # nobody waits any more; that nothing was heard is not known
    tell()
    assert asked == [1, 0] and said == ["Ray's autoscaler could not be told the demand: no answer"]
    demands.append(Demand(({"CPU": 4},), ("second",)))
    tell()
    demands.append(Demand(({"CPU": 4},)))
    tell()  # it runs, where it was asked for: there is nothing to tell
    assert asked == [1, 0, 1]
    assert said[1:] == [
        "second: Ray's autoscaler is asked for room, 1 x (4 CPU) in all",
        "nobody waits for room: Ray's autoscaler is asked for 1 x (4 CPU) from now on",
    ]
    ray.grows = False
    demands.append(Demand())
    tell()
    assert said[3:] == ["nobody waits for room: Ray's autoscaler is asked for nothing from now on"]
    assert asked == [1, 0, 1, 0]  # also of an autoscaler that adds nothing any more
