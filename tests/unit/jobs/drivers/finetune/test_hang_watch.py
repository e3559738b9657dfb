"""When the driver asks the nodes about a silent group, and what it does with their answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.drivers.finetune.hang_watch import _WORDS, HangWatch
from jobs.remedies.hang import Doing, Observations, Pulse, RankState
from jobs.training.on_ray.crash import Crash, How
from jobs.training.rank_states import end_ranks, rank_states
from jobs.training.worker_input import Job
from tests.support import tiny
from tests.support.processes import wait_for


def observed(rank: int, state: str = "S", stack: str = "File ...", pid: int = 0) -> Observations:
    pulse = Pulse(rank, pid or 100 + rank, Doing.STEP, 3, 0.0, 0.5)
    seen = RankState(pulse, f"host-{rank}", 12.0, state, 1.0, waits=state == "S", stack=stack)
    return Observations(seen, seen, 2.0)


def test_a_hang_in_each_activity_is_described() -> None:
    assert set(_WORDS) == set(Doing)


HEALTHY = [observed(0), observed(1)]
STOPPED = [observed(0), observed(1, "T", "")]
BLOCKED = [observed(0), observed(1, "D", "")]


class Driver:
    """A driver with two nodes that give the scripted answers, and a clock."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.now_s, self.answers, self.asked = 100.0, HEALTHY, list[float]()
        self.ended = list[dict[str, tuple[dict[int, str], set[int]]]]()  # for each kill: what the nodes were told
        self.told: list[dict[str, Any]] = []  # to the user
        self.recorded: list[dict[str, Any]] = []  # stored without being shown
        self.ends_meanwhile = False
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        given = {"remedies__hang": True, **changes}
        spec = tiny.spec_of(folder, folder / "model", folder / "text.jsonl", **given)
        self.job = Job(spec, str(folder / "run"), "prepared", "model", driver="d1")
        self.watch = HangWatch(self, ["n1", "n2"], self.ask)  # type: ignore[arg-type]
        self.newest: dict[str, Any] | None = None
        self.watch.begin(self.job, None)

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.told.append({"kind": kind, "message": message, **data})

    def record(self, kind: str, message: str, **data: Any) -> None:
        self.recorded.append({"kind": kind, "message": message, **data})

    def ask(
        self, nodes: Sequence[str], question: Any, key: str, *more: Any, wanted: Any = None, timeout_s: float = 0.0
    ) -> dict[str, Any]:
        assert key == "d1"
        if question is rank_states:
            assert list(nodes) == ["n1", "n2"]
            self.asked.append(self.now_s)
            if self.ends_meanwhile:
                threading.Thread(target=self.watch.leave).start()
                wait_for(lambda: not wanted(), "the answer is no longer wanted")
            return {f"n{1 + one.second.pulse.rank}": [one] for one in self.answers}
        assert question is end_ranks
        (node,) = nodes
        if not self.ended or node in self.ended[-1]:
            self.ended.append({})
        self.ended[-1][node] = more
        return {}

    def trains(self, *steps: int) -> None:
        for step in steps:
            self.newest = {"step": step, "step_time_s": 0.5 if step > 1 else 60.0}
            self.passes(0.5)

    def passes(self, seconds: float) -> None:
        """Look twice a second for so long."""
        for _ in range(round(seconds * 2)):
            self.now_s += 0.5
            self.watch.look(self.newest)
            wait_for(lambda: not any(one.name == "hang" for one in threading.enumerate()), "the nodes have answered")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


def test_a_stopped_rank_is_killed_once_and_the_user_is_told_once(driver: Driver) -> None:
    driver.trains(1, 2, 3)
    driver.answers = STOPPED
    driver.passes(14.0)
    assert driver.asked == [pytest.approx(112.0)], "ten seconds after the last step"
    ((stacks, nobody), (none, victims)) = (driver.ended[0][node] for node in ("n1", "n2"))
    assert victims == {101} and list(stacks) == [100] and not nobody and not none and len(driver.ended) == 1
    (told,) = driver.told
    assert (told["kind"], told["remedy"], told["rank"], told["state"]) == ("remedy", "hang", 1, "T")
    assert told["message"].startswith(
        "rank 1 on host host-1 made no progress for 12.0 s in step 3, where the longest one before took"
    )
    crash = driver.watch.named(Crash(How.LEFT, "lost its connection", rank=0))
    assert crash is not None and crash.how is How.DIED
    assert str(crash).startswith("rank 1 on node host-1 made no progress") and str(crash).endswith("and was killed")
    driver.watch.begin(driver.job, driver.newest)
    assert driver.watch.named(crash) is crash, "the new group has not hung"
    driver.passes(120.0)
    assert len(driver.asked) == 1, "a group that has made no step yet may take any time"
    driver.trains(3)
    (goes_on,) = driver.recorded
    assert goes_on["effect"].startswith("training goes on 1") and len(driver.told) == 1


@pytest.mark.parametrize("state", ["T", "D"])
def test_only_a_rank_that_was_not_stopped_from_outside_is_told_with_its_place(driver: Driver, state: str) -> None:
    driver.trains(1, 2)
    one = observed(1, state)
    seen = replace(one.second, frames=("read (/lib/a.py:1)",))
    driver.answers = [observed(0), Observations(seen, seen, 2.0)]
    driver.passes(11.0)
    (told,) = driver.told
    assert told["stack"] == ["read (/lib/a.py:1)"] and ("in read (" in told["message"]) is (state == "D")


def test_a_node_on_which_a_rank_hangs_twice_is_named_once(driver: Driver) -> None:
    for group in range(3):
        driver.answers = HEALTHY
        driver.trains(10 * group + 1, 10 * group + 2)
        driver.answers = STOPPED
        driver.passes(11.0)
        assert len(driver.ended) == group + 1
        driver.watch.begin(driver.job, driver.newest)
    (told,) = [one for one in driver.told if one["kind"] == "faulty"]
    assert told["nodes"] == ["n2"] and "ranks on host host-1 have hung 2 times" in told["message"]


def test_all_ranks_are_killed_if_a_signal_cannot_reach_the_one_that_hangs(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.answers = BLOCKED
    driver.passes(11.0)
    assert driver.ended[0]["n1"][1] == {100} and driver.ended[0]["n2"][1] == {101}


def test_a_rank_of_another_pod_with_the_same_process_id_is_left_alone(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.answers = [observed(0, pid=77), observed(1, "T", "", pid=77)]
    driver.passes(11.0)
    ((stacks, nobody), (none, victims)) = (driver.ended[0][node] for node in ("n1", "n2"))
    assert list(stacks) == [77] and victims == {77} and not nobody and not none


def test_a_healthy_group_is_asked_seldom_and_never_killed(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.passes(600.0)
    assert driver.ended == [] and driver.told == []
    assert 5 < len(driver.asked) < 15


def test_a_driver_that_was_paused_begins_to_count_anew(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.passes(6.0)
    driver.now_s += 60.0
    driver.passes(9.0)
    assert driver.asked == []
    driver.passes(3.0)
    assert len(driver.asked) == 1


def test_the_journal_of_an_old_run_may_be_late(driver: Driver) -> None:
    driver.trains(1, 2)
    for step in range(3, 3700):
        driver.trains(step)
    driver.passes(38.0)
    assert driver.asked == []
    driver.passes(4.0)
    assert len(driver.asked) == 1


def test_a_kill_that_did_not_arrive_is_tried_again(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.answers = STOPPED
    driver.passes(30.0)
    assert 1 < len(driver.ended) < 4


def test_a_group_that_has_ended_meanwhile_is_left_alone(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.answers = STOPPED
    driver.ends_meanwhile = True
    driver.passes(14.0)
    assert driver.asked and not driver.ended


def test_a_missing_answer_kills_nothing(driver: Driver) -> None:
    driver.trains(1, 2)
    driver.answers = STOPPED[1:]
    driver.passes(12.0)
    assert driver.asked and not driver.ended


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path, monkeypatch, remedies__hang=False)
    driver.answers = STOPPED
    driver.trains(1, 2)
    driver.passes(60.0)
    assert driver.asked == [] and driver.ended == []


def test_a_hang_after_steps_that_all_passed_between_two_looks_is_noticed(driver: Driver) -> None:
    driver.trains(5)
    driver.answers = STOPPED
    driver.passes(14.0)
    assert len(driver.asked) == 1 and len(driver.ended) == 1
