"""Which gang of a sweep carries out an order, and what becomes of one that cannot be started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Interrupted, MachinesFailed, RunFailed
from cluster.wakeup import Wakeup
from jobs.run.attempts import take_run
from jobs.search.driver import gangs, warm_gang
from jobs.search.driver.gangs import Gangs
from jobs.search.driver.warm_gang import GangLost, GangWaits
from jobs.search.rules.varying import engine_key, trial_spec
from jobs.spec.finetune import Spec
from jobs.training.mailbox import Answer, GangTask, Mailbox
from jobs.training.worker_input import Job
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of


class Started:
    """A gang of no workers, which cannot be started with some engines."""

    every: list[Started]

    def __init__(self, job: Job, *_: Any) -> None:
        self.spec, self.root, self.ended = job.spec, job.run_root, False
        self.waits_for_room = self.is_lost_next = self.is_loading = self.left = False
        self.runs = list[str]()
        self.engine, self.dead = engine_key(job.spec), self.failures.get(job.spec.train.global_batch_size)
        self.every.append(self)

    failures: dict[int | None, Exception]

    def carry_out(self, order: GangTask, another_is_free: Callable[[], bool]) -> Answer:
        if self.dead is not None:
            raise self.dead
        if self.waits_for_room and another_is_free():
            raise GangWaits("no room")
        if self.is_lost_next:
            self.is_lost_next, self.waits_for_room = False, True
            raise GangLost("its node is gone")
        self.runs.append(order.run)
        return Answer(status="paused", step=order.until or 0)

    def end(self) -> bool:
        self.ended = True
        return True

    def leave(self) -> None:
        self.left = True


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    Started.every, Started.failures = [], {}
    monkeypatch.setattr(gangs, "WarmGang", Started)
    monkeypatch.setattr(gangs, "take_run", lambda paths: "word")
    return sweep_of(tmp_path, BASE).base


def gangs_of(base: Spec, engines_vary: bool, places: tuple[str, ...] | None = None) -> Gangs:
    job = Job(base, "runs/found", "prepared", "model")
    return Gangs(job, 1 if places else 2, False, lambda *said, **data: None, places, engines_vary)  # type: ignore[arg-type]


def test_only_a_log_that_has_the_reason_is_shown(base: Spec, tmp_path: Path) -> None:
    logs = tmp_path / "found/gangs/1/logs"
    logs.mkdir(parents=True)
    (logs / "rank-0.log").write_text("LOAD REPORT from: model\n")
    (logs / "rank-1.log").write_text("RuntimeError: no such device\n")
    job = Job(base, str(tmp_path / "found"), "prepared", "model")
    made = Gangs(job, 1, False, lambda *said, **data: None)  # type: ignore[arg-type]
    assert made.log_of("the loss was nan after step 4") is None
    found = made.log_of("no such device")
    assert found is not None and found[0].endswith("rank-1.log")


def test_gangs_that_nobody_needs_are_given_back_but_for_those_at_work(base: Spec) -> None:
    made = Gangs(Job(base, "runs/found", "prepared", "model"), 3, False, lambda *said, **data: None)  # type: ignore[arg-type]
    with made._taken(order(base, "one", 4)) as place:
        assert made.give_back(2) and len(made) == 2
        assert made.give_back(1) and len(made) == 1
        assert not made.give_back(0), "the last one is at work"
        kept = [gang for number, gang in enumerate(Started.every) if number == place]
        assert [gang for gang in Started.every if not gang.ended] == kept
        size = base.resources.num_workers
        assert made.workers_kept == tuple(range(place * size, (place + 1) * size)) and made.num_workers_held == size
    assert made.carry_out(order(base, "one", 4)).status == "paused" and made.failure is None
    Started.every[place].dead = RunFailed("it is gone")
    assert str(made.failure) == "it is gone"


def test_gangs_that_wait_for_room_use_nothing_of_a_budget_unless_a_queue_keeps_it_for_them(base: Spec) -> None:
    made, size = gangs_of(base, engines_vary=True), base.resources.num_workers
    assert made.num_workers_held == 0
    made.carry_out(order(base, "a", 8))
    made.carry_out(order(base, "b", 16))
    assert made.num_workers_held == 2 * size
    Started.every[0].waits_for_room = True
    assert made.num_workers_held == size
    Started.every[1].dead = RunFailed("it is gone")
    assert made.num_workers_held == 0
    leased = gangs_of(base, engines_vary=True, places=("node-1",) * size)
    assert leased.num_workers_held == size


def order(base: Spec, run: str, batch: int) -> GangTask:
    return GangTask(action="train", run=run, spec=trial_spec(base, {"global_batch_size": batch}), until=5)


def test_without_other_engines_all_gangs_start_at_once_and_each_keeps_its_run(base: Spec) -> None:
    made = gangs_of(base, engines_vary=False)
    assert len(Started.every) == 2
    for run in ("a", "b", "a"):
        assert made.carry_out(GangTask(action="train", run=run, spec=base)).status == "paused"
    assert len(Started.every) == 2 and not any(one.ended for one in Started.every)


def test_a_gang_starts_with_the_engine_of_its_order(base: Spec) -> None:
    made = gangs_of(base, engines_vary=True)
    assert not Started.every and len(made) == 2
    for run, batch in (("a", 8), ("b", 16), ("c", 8), ("d", 16)):  # no gang is started for those that there are
        made.carry_out(order(base, run, batch))
    assert [one.spec.train.global_batch_size for one in Started.every] == [8, 16]
    made.carry_out(order(base, "e", 32))
    assert [one.ended for one in Started.every].count(True) == 1 and Started.every[
        -1
    ].spec.train.global_batch_size == 32
    assert len({one.root for one in Started.every}) == 3


def test_an_engine_that_cannot_start_fails_its_trial_and_the_gang_is_started_anew(base: Spec) -> None:
    Started.failures = {16: RunFailed("out of memory"), 32: MachinesFailed("workers were lost")}
    made = gangs_of(base, engines_vary=True)
    answer = made.carry_out(order(base, "a", 16))
    assert (answer.status, answer.reason) == ("failed", "out of memory") and made.failure is None
    with pytest.raises(GangLost):  # the machines may be at fault: another gang is tried
        made.carry_out(order(base, "b", 32))
    assert made.carry_out(order(base, "c", 8)).status == "paused"


def test_a_gang_that_waits_for_room_gets_no_order_while_another_one_has_room(base: Spec) -> None:
    """A run whose state it holds is trained by the other one. If all wait, the order waits for any of them."""
    made = gangs_of(base, engines_vary=False)
    assert made.carry_out(order(base, "one", 4)).status == "paused" and len(made) == 2
    ((held, _),) = made._held.items()
    other = 1 - held
    Started.every[held].waits_for_room = True
    with made._taken(order(base, "one", 4)) as place:
        assert place == other and len(made) == 1
    Started.every[other].waits_for_room = True
    with made._taken(order(base, "one", 4)) as place:
        assert place == held and len(made) == 2


def test_an_order_moves_from_a_gang_that_waits_for_room_to_one_that_becomes_free(base: Spec) -> None:
    """When it was given, all gangs waited. Ray Tune begins no other trial while this one waits."""
    made = gangs_of(base, engines_vary=False)
    with made._taken(GangTask(action="train", run="a", spec=base)) as place:
        at_work, waiting = Started.every[place], Started.every[1 - place]
        at_work.waits_for_room = waiting.waits_for_room = True
        moved = list[bool]()

        def waits(order: GangTask, another_is_free: Callable[[], bool]) -> Answer:
            moved.append(another_is_free())
            at_work.waits_for_room = False
            moved.append(another_is_free())
            with made._changed:
                made._free.append(place)  # it has carried out its order
            moved.append(another_is_free())
            raise GangWaits("no room")

        waiting.carry_out = waits  # type: ignore[method-assign]
        assert made.carry_out(GangTask(action="train", run="b", spec=base)).status == "paused"
        assert moved == [False, False, True] and at_work.runs == ["b"] and not waiting.runs
        made._free.remove(place)


def gang_without_workers(base: Spec, folder: Path) -> warm_gang.WarmGang:
    job = Job(base, str(folder / "gang"), "prepared", "model")
    return warm_gang.WarmGang(replace(job, driver=take_run(job.paths)), False, lambda *said, **data: None)  # type: ignore[arg-type]


def test_workers_that_find_room_later_do_not_begin_with_an_order_that_has_moved(
    base: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, began = threading.Event(), list[int]()

    def fit(job: Job, *_: Any, first: int, wakeup: Wakeup) -> dict[str, Any]:
        began.append(first)
        mailbox = Mailbox(job.run_root)
        while (task := mailbox.tasks.wait(first)).action != "end":
            mailbox.answers.put(first, Answer(status="paused", step=task.until or 0))
            first += 1
        return {}

    monkeypatch.setattr(warm_gang, "find_room", lambda *_: room.wait(60))
    monkeypatch.setattr(warm_gang, "fit", fit)
    monkeypatch.setattr(warm_gang, "outcome_of", lambda *_: None)
    gang = gang_without_workers(base, tmp_path)
    with pytest.raises(GangWaits):
        gang.carry_out(order(base, "a", 8), lambda: True)
    room.set()
    answer = gang.carry_out(order(base, "b", 8).model_copy(update={"until": 7}))
    assert (answer.step, began) == (7, [2])
    assert gang.end()


def test_a_gang_that_is_ended_when_it_finds_room_leaves_nobody_waiting(
    base: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = threading.Event()
    monkeypatch.setattr(warm_gang, "find_room", lambda *_: room.wait(60))
    gang = gang_without_workers(base, tmp_path)

    def ended() -> bool:
        gang._ending = True
        room.set()
        return False

    with pytest.raises(MachinesFailed, match="the gang was ended"):
        gang.carry_out(order(base, "a", 8), ended)


def test_a_gang_that_is_left_ends_without_its_workers(
    base: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's thread in `fit` would go on while Ray is shut down."""
    began, ended = threading.Event(), list[str]()

    def fit(job: Job, places: object, alone: bool, look: Callable[[], None], *, first: int, wakeup: Wakeup) -> None:
        began.set()
        try:
            while True:
                wakeup.wait(60)
                look()
        except MachinesFailed as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(warm_gang, "find_room", lambda *_: None)
    monkeypatch.setattr(warm_gang, "fit", fit)
    gang = gang_without_workers(base, tmp_path)
    assert began.wait(60)
    gang.leave()
    gang.join(60)
    assert ended == ["the driver has left the gang"] and gang.dead is not None


def test_a_run_goes_back_to_the_gang_that_has_trained_it_last(base: Spec) -> None:
    """After a loss, the gang that had it before has no state of it; a gang that was passed over has an old one."""
    made = gangs_of(base, engines_vary=False)
    task = GangTask(action="train", run="a", spec=base)
    made.carry_out(task)
    (lost,) = [gang for gang in Started.every if gang.runs]
    (other,) = [gang for gang in Started.every if not gang.runs]
    lost.is_lost_next = True
    with pytest.raises(GangLost):
        made.carry_out(task)
    assert made._held == {}
    made.carry_out(task)
    lost.waits_for_room = False  # its new workers are there
    made.carry_out(task)
    assert (lost.runs, other.runs) == (["a"], ["a", "a"])


def test_a_stop_ends_the_gangs_that_wait_for_room(base: Spec) -> None:
    made = gangs_of(base, engines_vary=False)
    Started.every[1].waits_for_room = True
    made.begin_no_more()
    assert [gang.ended for gang in Started.every] == [False, True]


def test_a_stop_does_not_wait_for_gangs_that_load_the_model(base: Spec) -> None:
    made = gangs_of(base, engines_vary=False)
    Started.every[1].is_loading = True
    made.begin_no_more()
    assert [gang.left for gang in Started.every] == [False, True]


def test_after_a_stop_no_order_is_begun(base: Spec) -> None:
    """Else a trial that waits for the gang of another one would be loaded, and train a step, before the sweep ends."""
    made, ended = gangs_of(base, engines_vary=False), list[str]()
    task = GangTask(action="train", run="a", spec=base)

    def wait_for_a_gang() -> None:
        with pytest.raises(Interrupted):
            made.carry_out(task)
        ended.append("a")

    with made._taken(task), made._taken(task):
        waiting = threading.Thread(target=wait_for_a_gang)
        waiting.start()
        made.begin_no_more()
        waiting.join(60)
    assert ended == ["a"] and not any(gang.runs for gang in Started.every)


def test_where_a_node_of_the_lease_is_gone_the_queue_is_told(base: Spec) -> None:
    Started.failures = {16: MachinesFailed("a node is gone")}
    made = gangs_of(base, engines_vary=True, places=("node-1",))
    with pytest.raises(MachinesFailed):
        made.carry_out(order(base, "a", 16))
