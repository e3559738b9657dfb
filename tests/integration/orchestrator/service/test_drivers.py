"""What drivers are told and say, what follows an end, and clients that are gone, on a made-up cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.settings import driver_place
from cluster.testing import FakeClock
from jobs.drivers.link.messages import Beat, Instruction, Register
from orchestrator.queue.errors import (
    AttemptOver,
    NotYourAttempt,
    OtherQueue,
    QueueError,
    StoreBroken,
)
from orchestrator.queue.records import Job, Measured
from orchestrator.queue.states import ENDED, DesiredState, State
from orchestrator.queue.store import Change, Store
from orchestrator.service import drivers as driving
from orchestrator.service.admission import clients
from orchestrator.service.admission import follow_ups as followups
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.context.heartbeats import Heartbeats
from orchestrator.service.context.identity import DriverKey, attempt_token
from orchestrator.service.drivers import launch_of
from orchestrator.store import open_store
from tests.support.processes import wait_for
from tests.support.queueworld import START_S, new
from tests.support.service import ANNA, ServiceWorld, beat_of, command, finetune, queue
from tests.support.stores import at_once, go

RUN = "s3://bucket/runs/train-1"


def came_up(job: Job) -> Register:
    return Register(job_id=job.job_id, attempt=job.attempt)


def test_a_driver_is_started_with_the_token_of_its_attempt(world: ServiceWorld) -> None:
    job = world.started(command(resources={"gpus_per_worker": 1}))
    launch = launch_of(world.context)(job)
    assert launch.command == ("python", "-P", "-m", "jobs.drivers.attempt")
    assert launch.metadata == {"job": job.job_id, "tenant": "a", "gpus": "n0=1"}
    place = driver_place(launch.environment)
    assert place is not None
    assert (place.url, place.job_id, place.attempt) == ("http://server", job.job_id, 1)
    assert (place.queue, place.other_urls) == ("", ())
    context = replace(world.context, queue="a1b2c3d4", other_urls=("http://second", "http://third"))
    told = driver_place(launch_of(context)(job).environment)
    assert told is not None and (told.queue, told.other_urls) == ("a1b2c3d4", ("http://second", "http://third"))
    with pytest.raises(OtherQueue, match="belongs to queue ffffffff"):
        driving.check_attempt(context, place.token, beat_of(job, queue="ffffffff"))
    driving.check_attempt(context, place.token, beat_of(job, queue="a1b2c3d4"))
    driving.check_attempt(world.context, place.token, came_up(job))
    for token in ("", place.token[:-1], place.token.upper(), attempt_token("", job.job_id, 1), "\udfff"):
        with pytest.raises(NotYourAttempt, match="FLEETUNE_DRIVER_TOKEN"):
            driving.check_attempt(world.context, token, beat_of(job))
    with pytest.raises(NotYourAttempt):
        driving.check_attempt(world.context, place.token, Beat(job_id=job.job_id, attempt=2))


def test_servers_of_one_store_agree_on_the_key(tmp_path: Path) -> None:
    stores = [open_store(f"{tmp_path}/x.db") for _ in range(4)]
    keys = at_once(*(DriverKey(store).value for store in stores))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    for store in stores:
        store.close()


def test_a_driver_learns_what_it_is_to_run(world: ServiceWorld) -> None:
    job = world.started(command(resources={"num_workers": 6, "gpus_per_worker": 1}, **queue(secrets=["TOKEN"])))
    told = driving.register(world.context, came_up(job))
    assert (told.kind, told.engine, told.order, told.run) == ("command", "local", Instruction.GO_ON, None)
    assert told.placement == job.placement
    assert dict(told.secrets) == {"TOKEN": "hidden"}
    assert told.spec["command"] == ["python", "-m", "evaluate"]
    world.context.heartbeats.flush()
    assert world.job(job.job_id).heard_s == world.clock()


def test_the_model_of_a_parent_is_a_path_by_then(world: ServiceWorld) -> None:
    world.backend.script("train-*", runs_s=5.0)
    parent = world.started(finetune())
    run = driving.register(world.context, came_up(parent)).run
    assert run is not None
    world.passes(6)
    child = world.started(finetune(f"run:{parent.job_id}", name="more", **queue(after=[parent.job_id])))
    told = driving.register(world.context, came_up(child))
    assert told.spec["model"]["path"] == f"{run}/model"
    assert dict(told.parents) == {parent.job_id: run}


def test_a_run_has_its_place_before_it_begins_and_keeps_it_in_all_attempts(world: ServiceWorld) -> None:
    job = world.started(finetune())
    run = driving.register(world.context, came_up(job)).run
    assert run is not None and run.startswith("s3://bucket/runs/train-")
    assert driving.register(world.context, came_up(job)).run == run  # an answer that was lost
    assert world.job(job.job_id).run == run  # and nothing was flushed
    driving.heartbeat(world.context, beat_of(job, run=run))
    world.backend.lose(job.submission)
    world.passes(30)
    again = world.job(job.job_id)
    assert again.attempt == 2
    assert driving.register(world.context, came_up(again)).run == run


@pytest.mark.parametrize("run", ["/etc", "s3://bucket/runs/../secret", "s3://bucket/runs", "s3://other/runs/train-1"])
def test_a_driver_cannot_have_the_server_read_elsewhere(world: ServiceWorld, run: str) -> None:
    job = world.started(finetune())
    its_own = driving.register(world.context, came_up(job)).run
    with pytest.raises(QueueError, match="is not the run of"):
        driving.heartbeat(world.context, beat_of(job, run=run))
    assert world.job(job.job_id).run == its_own
    other = world.started(command("other"))
    with pytest.raises(QueueError, match="is not the run of"):
        driving.heartbeat(world.context, beat_of(other, run=its_own))


def test_what_one_driver_says_and_no_store_takes_costs_no_other_one_its_own(world: ServiceWorld) -> None:
    job, other = world.started(command()), world.started(command("other"))
    heartbeats = world.context.heartbeats
    heartbeats.note(Measured(other.job_id, 1, step=2**63))
    heartbeats.note(Measured(job.job_id, 1, step=7))
    heartbeats.flush()
    assert world.job(job.job_id).step == 7
    many = {f"metric-{number}": 1.0 for number in range(1000)} | {"x" * 101: 1.0}
    driving.heartbeat(world.context, beat_of(job, metrics=many))
    driving.heartbeat(world.context, beat_of(job, metrics={f"other-{number}": 1.0 for number in range(150)}))
    heartbeats.flush()
    names = world.job(job.job_id).metrics
    assert len(names) == 200 and "other-149" in names and "x" * 101 not in names


def test_an_unexpected_fault_does_not_end_the_thread_that_writes_what_drivers_say(
    world: ServiceWorld, caplog: pytest.LogCaptureFixture
) -> None:
    job, failed = world.started(command()), threading.Event()

    class Fails(FakeClock):
        def now_s(self) -> float:
            if not failed.is_set():
                failed.set()
                raise ZeroDivisionError("nobody has thought of it")
            return super().now_s()

    heartbeats = Heartbeats(world.store, Fails(world.clock()), every_s=0.01)
    heartbeats.note(Measured(job.job_id, 1, step=3))
    assert failed.wait(60.0)
    heartbeats.note(Measured(job.job_id, 1, step=4))
    wait_for(lambda: world.job(job.job_id).step == 4, "the next is written")
    heartbeats.close()
    assert heartbeats.faults == 1 and "nobody has thought of it" in caplog.text


def test_what_a_driver_says_last_is_kept_before_it_is_answered(world: ServiceWorld) -> None:
    job = world.started(command())
    driving.heartbeat(world.context, beat_of(job, step=20, metrics={"eval_loss": 0.5}, last=True))
    assert (world.job(job.job_id).step, world.job(job.job_id).metrics) == (20, {"eval_loss": 0.5})


class Breaks:
    """A store whose first writes fail once the test lets them."""

    def __init__(self, store: Store, failures: int) -> None:
        self._store, self._failures = store, failures
        self.is_writing, self.may_fail = threading.Event(), threading.Event()

    def measure(self, said: list[Measured], now_s: float) -> None:
        self.is_writing.set()
        assert self.may_fail.wait(60.0)
        if self._failures:
            self._failures -= 1
            raise StoreBroken("the disk is full")
        self._store.measure(said, now_s)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_flush_writes_what_another_thread_could_not_write_or_fails(world: ServiceWorld, failures: int) -> None:
    job = world.started(command())
    store = Breaks(world.store, failures)
    heartbeats = Heartbeats(store, world.clock, every_s=3600.0)  # type: ignore[arg-type]
    heartbeats.note(Measured(job.job_id, 1, step=20, metrics={"loss": 0.5}))
    writer = threading.Thread(target=heartbeats._flush_quietly)
    writer.start()
    assert store.is_writing.wait(60.0)
    heartbeats.note(Measured(job.job_id, 1, step=21))
    store.may_fail.set()
    with pytest.raises(StoreBroken) if failures == 2 else contextlib.nullcontext():
        heartbeats.flush()
    assert world.job(job.job_id).step == (0 if failures == 2 else 21)
    writer.join()
    heartbeats.close()
    assert (world.job(job.job_id).step, world.job(job.job_id).metrics) == (21, {"loss": 0.5})


def test_reports_that_are_written_one_by_one_stay_if_the_store_breaks_meanwhile(world: ServiceWorld) -> None:
    job, other = world.started(command()), world.started(command("other"))

    class Refuses(Breaks):
        def measure(self, said: list[Measured], now_s: float) -> None:
            if len(said) > 1:
                raise ZeroDivisionError("one of them")
            super().measure(said, now_s)

    store = Refuses(world.store, 1)
    store.may_fail.set()
    heartbeats = Heartbeats(store, world.clock, every_s=3600.0)  # type: ignore[arg-type]
    for one in (job, other):
        heartbeats.note(Measured(one.job_id, 1, step=7))
    with pytest.raises(StoreBroken):
        heartbeats.flush()
    heartbeats.flush()
    assert [world.job(one.job_id).step for one in (job, other)] == [7, 7]
    heartbeats.close()


@pytest.mark.parametrize("wanted", [DesiredState.PAUSE, DesiredState.CANCEL])
def test_a_driver_is_told_to_stop_as_soon_as_its_owner_wants_it(world: ServiceWorld, wanted: DesiredState) -> None:
    job = world.started(command())
    assert driving.heartbeat(world.context, beat_of(job)).order is Instruction.GO_ON
    world.store.ask(job.job_id, Change(wanted=wanted), world.clock(), "anna")
    assert driving.heartbeat(world.context, beat_of(job)).order is Instruction.STOP
    assert driving.register(world.context, came_up(job)).order is Instruction.STOP
    world.passes(3)
    answer = driving.heartbeat(world.context, beat_of(job))
    assert (answer.order, answer.reason) == (Instruction.LEAVE, "the attempt is over, and another one may run")


def test_an_attempt_that_is_over_is_told_to_leave(world: ServiceWorld) -> None:
    job = world.started(command())
    world.backend.lose(job.submission)
    world.passes(30)
    assert world.job(job.job_id).attempt == 2
    assert driving.heartbeat(world.context, beat_of(job, step=5)).order is Instruction.LEAVE
    with pytest.raises(AttemptOver):
        driving.register(world.context, came_up(job))
    assert driving.heartbeat(world.context, Beat(job_id="never-there", attempt=1)).order is Instruction.LEAVE
    world.context.heartbeats.flush()
    assert world.job(job.job_id).step == 0


def test_what_drivers_say_is_written_together_and_the_newest_wins() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls, self.written, self.all_said = list[list[Measured]](), threading.Event(), threading.Event()

        def measure(self, said: list[Measured], now_s: float) -> None:
            self.calls.append(said)
            self.written.set()
            self.all_said.wait(60.0)  # so that a thread that takes long to say all of it finds few writes
            if len(self.calls) == 2:
                raise StoreBroken("gone for a while")

    world, store, before = ServiceWorld(1), Counting(), set(threading.enumerate())
    heartbeats = Heartbeats(store, world.clock, every_s=0.05)  # type: ignore[arg-type]
    for step in range(50):
        for number in range(100):
            heartbeats.note(Measured(f"job-{number}", 1, step=step, metrics={f"m{step}": 1.0}))
    assert store.written.wait(60.0)
    heartbeats.note(Measured("job-1", 1, step=77))
    store.all_said.set()
    heartbeats.close()
    told = [one for call in store.calls for one in call]
    assert len(told) <= 400
    newest = {one.job_id: one.step for one in told}
    assert newest == {f"job-{number}": 77 if number == 1 else 49 for number in range(100)}
    heartbeats.note(Measured("job-1", 1))  # after the end: kept, and no thread is left
    assert not [one for one in threading.enumerate() if one.name == "heartbeats" and one not in before]
    world.close()


def test_a_secret_that_the_server_has_no_more_is_named(world: ServiceWorld) -> None:
    job = world.started(command(**queue(secrets=["OTHER"])))
    less = ServiceContext(world.store, world.backend, world.clock, secrets={"TOKEN": "hidden"})
    with pytest.raises(QueueError, match="Start it with FLEETUNE_SECRET_OTHER") as caught:
        driving.register(less, came_up(job))
    assert "hidden" not in str(caught.value)


# What follows an end


def test_the_end_of_a_job_is_followed_once_by_a_small_job(world: ServiceWorld) -> None:
    on_end = {"command": ["notify", "--me"]}
    (job,) = world.admit(command("e" * 63, working_dir="/tmp", **queue(on_end=on_end, priority=-4, secrets=["TOKEN"])))
    world.passes(2)
    assert followups.follow_up(world.context) == 0
    world.backend.lose(world.job(job.job_id).submission)
    world.store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "anna")
    world.passes(4)
    assert world.job(job.job_id).state is State.CANCELLED
    assert [followups.follow_up(world.context) for _ in range(3)] == [1, 0, 0]
    follower, _ = world.store.jobs()
    assert (follower.name, follower.tenant, follower.submitted_by) == ("e" * 56 + "-on-end", "a", "anna")
    assert (follower.priority, follower.preemptible, follower.on_end) == (-4, False, "")
    assert str(follower.gang) == "1 worker of 1 CPU"
    spec = json.loads(world.store.spec(follower.job_id))
    assert (spec["command"], spec["working_dir"]) == (["notify", "--me"], "/tmp")
    assert spec["queue"]["secrets"] == ["TOKEN"]
    assert spec["env"]["FLEETUNE_ENDED_JOB"] == job.job_id
    assert (spec["env"]["FLEETUNE_ENDED_STATE"], spec["env"]["FLEETUNE_ENDED_RUN"]) == ("cancelled", "")


def test_a_webhook_is_a_job_that_sends(world: ServiceWorld) -> None:
    (job,) = world.admit(command(**queue(on_end={"webhook": "https://example.org/hook"})))
    go(world.store, job, State.CANCELLED, now_s=world.clock())
    assert followups.follow_up(world.context) == 1
    follower, _ = world.store.jobs()
    spec = json.loads(world.store.spec(follower.job_id))
    assert spec["command"] == ["python", "-P", "-m", "jobs.webhook"]
    assert spec["env"]["FLEETUNE_WEBHOOK_URL"] == "https://example.org/hook"
    body = json.loads(spec["env"]["FLEETUNE_WEBHOOK_BODY"])
    assert (body["job"], body["state"], body["name"], body["run"]) == (job.job_id, "cancelled", "job", None)


def test_a_server_that_dies_between_submitting_and_noting_does_not_submit_twice(world: ServiceWorld) -> None:
    (job,) = world.admit(command(**queue(on_end={"command": ["x"]})))
    ended = go(world.store, job, State.CANCELLED, now_s=world.clock())
    followups._submit(world.context, ended)
    assert followups.follow_up(world.context) == 1
    assert len(world.store.jobs()) == 2


def test_each_end_is_followed_also_without_a_new_attempt(world: ServiceWorld) -> None:
    (job,) = world.admit(command(**queue(on_end={"command": ["x"]})))
    for _ in range(3):
        job = go(world.store, job, State.CANCELLED, now_s=world.clock())
        assert followups.follow_up(world.context) == 1
        job = world.store.retry(job.job_id, world.clock(), "anna")
    assert len(world.store.jobs()) == 4


def test_what_cannot_follow_holds_nobody_up(world: ServiceWorld) -> None:
    bad = [new("bad", on_end=text) for text in ("{}", "[]", "no json", '{"command": ["\\u0000"]}', '{"command": []}')]
    world.store.submit([*bad, new("good", on_end='{"command": ["x"]}')], START_S)
    for job in world.store.jobs():
        go(world.store, job, State.CANCELLED, now_s=START_S)
    assert followups.follow_up(world.context) == 6
    assert followups.follow_up(world.context) == 0
    assert [job.name for job in world.store.jobs() if job.state not in ENDED] == ["good-on-end"]
    said = [event.message for event in world.store.events() if event.kind == "on-end"]
    assert len(said) == 5


# Clients


def test_jobs_of_a_client_that_is_gone_are_cancelled(world: ServiceWorld, tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    path = tmp_path / "clients" / "12-ab.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (job,), (free,) = world.admit(command(), client="12-ab"), world.admit(command())
        assert clients.cancel_what_the_gone_left(world.context, tmp_path) == 0
    assert clients.cancel_what_the_gone_left(world.context, tmp_path) == 1
    assert clients.cancel_what_the_gone_left(world.context, tmp_path) == 0
    assert [world.job(one.job_id).wanted for one in (job, free)] == [DesiredState.CANCEL, DesiredState.RUN]
    (other,) = world.admit(command(), client="never-there")
    assert clients.cancel_what_the_gone_left(world.context, tmp_path) == 1
    world.passes(2)
    assert world.states(job.job_id, other.job_id, free.job_id) == [State.CANCELLED, State.CANCELLED, State.RUNNING]


def test_who_cannot_be_looked_at_lives(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "link.lock").symlink_to("/dev/zero")
    assert clients.is_alive(tmp_path, "link")
    assert clients.is_alive(tmp_path, "../x")
    assert ANNA.may_see("a")


def test_files_of_clients_that_are_gone_and_left_nothing_are_removed(world: ServiceWorld, tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    folder.mkdir()
    for name in ("old", "new", "held", "needed"):
        (folder / f"{name}.lock").touch()
    for name in ("old", "held", "needed"):
        os.utime(folder / f"{name}.lock", (1.0, 1.0))
    world.admit(command(), client="needed")
    with open(folder / "held.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        clients.forget_the_gone(world.context, tmp_path)
    assert sorted(path.stem for path in folder.iterdir()) == ["held", "needed", "new"]
