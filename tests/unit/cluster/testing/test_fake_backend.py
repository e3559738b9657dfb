"""The fake cluster's scripts, its ways of breaking, and what its history lets a test say."""

from __future__ import annotations

import pathlib
import socket
from multiprocessing.connection import Client

import pytest

from cluster.backend import Launch, Phase, Submission
from cluster.capacity.inventory import Node
from cluster.errors import BackendUnreachable, LaunchRefused
from cluster.testing import (
    FakeBackend,
    FakeClock,
    FakeCluster,
    Run,
    Script,
    ServedCluster,
    double_runs,
    most_gpus,
    nodes,
    served,
)
from cluster.testing.served_cluster import dump, load


def made(*names: str) -> tuple[FakeBackend, FakeClock]:
    clock = FakeClock(100.0)
    return FakeBackend(FakeCluster(nodes(*(names or ("n1", "n2"))), clock)), clock


def launch(name: str, gpus: str = "n1=4") -> Launch:
    return Launch(name, ("anything",), metadata={"gpus": gpus})


def state(backend: FakeBackend, name: str) -> Submission | None:
    return next((one for one in backend.submissions() if one.submission == name), None)


def test_a_program_runs_for_a_minute_of_the_clock_and_succeeds() -> None:
    backend, clock = made()
    backend.start(launch("a-1"), 1)
    clock.advance(59.9)
    assert state(backend, "a-1") == Submission("a-1", Phase.RUNNING)
    clock.advance(0.2)
    assert state(backend, "a-1") == Submission("a-1", Phase.SUCCEEDED, 0)
    assert backend.history() == (Run("a-1", 1, 100.0, 160.0, Phase.SUCCEEDED, {"n1": 4}),)


def test_scripts_go_by_name_and_the_newest_that_fits_counts() -> None:
    backend, clock = made()
    backend.fail("a-*", exit_code=2, after_s=5)
    backend.never_start("a-2")
    backend.script_by(lambda given: Script(exit_code=9, runs_s=1) if given.metadata.get("odd") else None)
    for one in (launch("a-1"), launch("a-2"), launch("b-1"), Launch("b-2", ("x",), metadata={"odd": "1"})):
        backend.start(one, 1)
    clock.advance(10)
    assert {one.submission: (one.phase, one.exit_code) for one in backend.submissions()} == {
        "a-1": (Phase.FAILED, 2),
        "a-2": (Phase.PENDING, None),
        "b-1": (Phase.RUNNING, None),
        "b-2": (Phase.FAILED, 9),
    }
    backend.refuse("c-*", why="there is no c")
    with pytest.raises(LaunchRefused, match="there is no c"):
        backend.start(launch("c-1"), 1)
    assert state(backend, "c-1") is None


def test_what_is_pending_and_stopped_has_never_run() -> None:
    backend, clock = made()
    backend.never_start("a-1")
    backend.start(launch("a-1"), 1)
    clock.advance(1000)
    backend.stop("a-1")
    assert state(backend, "a-1") == Submission("a-1", Phase.STOPPED)
    assert backend.history() == ()


def test_a_program_may_take_its_time_to_stop_or_not_listen() -> None:
    backend, clock = made()
    backend.script("slow-1", stops_after_s=20, stopped_exit_code=130)
    backend.ignore_soft_stop("deaf-1")
    for name in ("slow-1", "deaf-1"):
        backend.start(launch(name), 1)
        backend.stop(name)
    clock.advance(10)
    backend.stop("slow-1")  # asked again: it does not begin anew
    clock.advance(10)
    assert state(backend, "slow-1") == Submission("slow-1", Phase.STOPPED, 130)
    assert state(backend, "deaf-1") == Submission("deaf-1", Phase.RUNNING)
    backend.stop("deaf-1", hard=True)
    assert state(backend, "deaf-1") == Submission("deaf-1", Phase.STOPPED, -9)


def test_with_a_node_go_the_programs_that_hold_gpus_of_it() -> None:
    backend, clock = made("n1", "n2", "n3")
    backend.start(launch("a-1", "n1=8 n2=4"), 1)
    backend.start(launch("b-1", "n3=4"), 1)
    clock.advance(5)
    backend.lose_node("n2")
    assert state(backend, "a-1") == Submission("a-1", Phase.LOST, None, "node n2 is gone")
    assert state(backend, "b-1") == Submission("b-1", Phase.RUNNING)
    backend.add_node("n4", gpus=0)
    backend.change_node("n3", foreign_gpus=2)
    assert {node.node_id: (node.gpus, node.foreign_gpus) for node in backend.inventory().nodes} == {
        "n1": (8, 0),
        "n3": (8, 2),
        "n4": (0, 0),
    }
    backend.lose("b-1")
    assert [run.ended_s for run in backend.history()] == [105.0, 105.0]


def test_an_answer_that_is_lost_had_its_effect() -> None:
    backend, _ = made()
    with backend.unreachable(), pytest.raises(BackendUnreachable):
        backend.start(launch("a-1"), 1)
    with backend.answers_lost(), pytest.raises(BackendUnreachable):
        backend.start(launch("b-1"), 1)
    assert [one.submission for one in backend.submissions()] == ["b-1"]


def run(name: str, started_s: float, ended_s: float | None, **gpus: int) -> Run:
    return Run(name, 1, started_s, ended_s, Phase.RUNNING, gpus)


def test_two_attempts_of_one_job_that_overlap_are_seen() -> None:
    first, second = run("a-b-1", 0, 10), run("a-b-2", 9, None)
    assert double_runs([second, run("other-1", 0, None), first]) == [(first, second)]
    assert double_runs([run("a-1", 0, 10), run("a-2", 10, None)]) == []
    same = [run("a-1", 0, 10), run("a-2", 0, 10)]
    assert double_runs(same) == [tuple(same)]
    assert len(double_runs([run("a-1", 0, None), run("a-2", 1, 2), run("a-3", 3, 4)])) == 2


def test_the_most_gpus_at_one_time_are_counted_for_each_node() -> None:
    history = [run("a-1", 0, 10, n1=4, n2=8), run("b-1", 10, 20, n1=8), run("c-1", 5, None, n1=2)]
    assert most_gpus(history) == {"n1": 10, "n2": 8}
    assert most_gpus([]) == {}


def test_values_come_back_whole_from_the_wire() -> None:
    values = (
        Launch("a", ("b", "c"), {"A": "1"}, "/d", {"gpus": "n1=1"}),
        Submission("a", Phase.LOST, None, "ü"),
        Script(runs_s=float("inf"), output=b"\x00\xff"),
        run("a-1", 0.5, None, n1=4),
        Node("n1", 4, 8, "H100", False, 1, 2),
        {"is": "no value", "of": [1, 2.5, None, True]},
    )
    assert load(dump(values)) == (*values[:-1], {"is": "no value", "of": (1, 2.5, None, True)})


def test_a_clock_may_run_by_itself_and_does_not_go_back() -> None:
    clock = FakeClock(5.0, rate=1e6)
    first = clock()
    while clock() < first + 1:
        pass
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(-1)


def test_a_cluster_in_its_own_process_does_all_that_one_in_this_process_does(tmp_path: pathlib.Path) -> None:
    with served(tmp_path, "--nodes", "2", "--gpus", "4", "--runs-s", "30") as backend:
        assert [(node.node_id, node.gpus) for node in backend.inventory().nodes] == [("n1", 4), ("n2", 4)]
        backend.fail("b-*", exit_code=3, after_s=10)
        backend.start(launch("a-1", "n1=2"), 7)
        FakeBackend(ServedCluster(tmp_path / "cluster")).start(launch("b-1", "n2=4"), 7)
        with backend.unreachable(), pytest.raises(BackendUnreachable):
            backend.submissions()
        backend.advance(20)
        backend.lose_node("n1")
        backend.add_node("n3")
        assert [(one.phase, one.exit_code) for one in backend.submissions()] == [(Phase.LOST, None), (Phase.FAILED, 3)]
        assert most_gpus(backend.history()) == {"n1": 2, "n2": 4} and backend.now() == 20.0
        with pytest.raises(KeyError):
            backend.lose_node("n9")
        with pytest.raises(TypeError):
            backend.script_by(lambda given: None)
        assert (tmp_path / "cluster").stat().st_mode & 0o077 == 0
    with pytest.raises(BackendUnreachable, match="no fake cluster answers"):
        backend.now()


def test_half_a_call_has_no_effect_and_is_no_harm(tmp_path: pathlib.Path) -> None:
    with served(tmp_path) as backend:
        call = dump(("start", (launch("a-1"), 1)))
        with socket.socket(socket.AF_UNIX) as connection:  # a caller that is killed while it writes
            connection.connect(str(tmp_path / "cluster"))
            connection.sendall(len(call).to_bytes(4, "big") + call[: len(call) // 2])
        with Client(str(tmp_path / "cluster")) as speaker:  # and one that speaks something else
            speaker.send_bytes(b"hello")
            assert load(speaker.recv_bytes())["error"] == "JSONDecodeError"
        assert backend.submissions() == ()
