"""What the driver does when workers ran out of memory, from the files that they left; no worker is started here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import OutOfMemory
from jobs.drivers.finetune.memory_remedy import MemoryRemedy, with_earlier_changes
from jobs.planning import plan_batching
from jobs.run.attempts import write_attempt
from jobs.run.outcome import Event, event
from jobs.run.paths import JobPaths
from jobs.run.remedies import read_remedies, troubles_of
from jobs.run.run_plan import RunPlan, write_plan
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter
from jobs.training.on_ray.crash import Crash, How
from jobs.training.worker_input import Job
from tests.support import tiny

PLAN = RunPlan(
    machines="2xCPU", precision="fp32", parameters=10, memory={}, total_bytes=3 * 2**29, room_bytes=2**32, step_s=1.0,
    tokens_per_s=1.0,
)  # fmt: skip

KILLED = Crash(How.MEMORY, "was killed for memory by the kernel", rank=1, host="n2")


class Told:
    """Announcements of a driver."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.events.append(event(kind, message, **data))

    def remedies(self) -> list[dict[str, Any]]:
        return [one.data for one in self.events if one.kind == "remedy"]


class Gang:
    """A worker group, as the files tell of it."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        given = {"train__per_device_train_batch_size": 4, "data__eval_fraction": 0.3, **changes}
        spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl", **given)
        self.job, self.told = Job(spec, str(tmp_path / "run"), "prepared", "model", driver="d1"), Told()
        self.paths = JobPaths(self.job.run_root)
        self.remedy = MemoryRemedy(self.paths, self.told)  # type: ignore[arg-type]
        self.remedy.begin()

    def says(self, *events: Event) -> None:
        journal = JournalWriter(self.paths.events, "rank-0")
        for one in events:
            journal.append(one.model_dump(mode="json"))
        journal.close()

    def trains(self, *steps: int) -> None:
        write_attempt(self.paths, steps[0] - 1, 2)
        journal = JournalWriter(self.paths.metrics, "rank-0")
        for step in steps:
            journal.append({"step": step})
        journal.close()

    def fails(self, fault: str = "memory", in_update: bool = False) -> None:
        said = {"rank": 1, "node": "n2", "fault": fault, "reason": "rank 1 ran out. Lower it.", "at": 0.0}
        memory = {"cause": "rank 1 ran out", "of_host": True, "in_update": in_update}
        storage.write_bytes(self.paths.failure(1), json.dumps({**said, **memory}).encode())


LOADED = event("plan", "training 20 steps", total_steps=20, supports_gradient_checkpointing=True)
UNSUPPORTED = event("plan", "training 20 steps", total_steps=20, supports_gradient_checkpointing=False)
EVALUATING = event("phase", "evaluating", phase="evaluate", rows=8)
EVALUATED = event("evaluated", "before training", step=0)
EXPORTING = event("phase", "exporting", phase="export")


@pytest.mark.parametrize(
    ("said", "trains", "field", "where"),
    [
        ([LOADED, EVALUATING], False, "eval.per_device_eval_batch_size", "evaluation"),
        ([LOADED, EVALUATING, EVALUATED], False, "train.per_device_train_batch_size", "training"),
        ([LOADED], True, "train.per_device_train_batch_size", "training"),
    ],
)
def test_the_files_of_the_group_tell_where_it_ran_out(
    tmp_path: Path, said: list[Event], trains: bool, field: str, where: str
) -> None:
    gang = Gang(tmp_path)
    gang.says(*said)
    if trains:
        gang.trains(1, 2, 3)
    job = gang.remedy.job_after_kill(gang.job, KILLED)
    (remedy,) = read_remedies(gang.paths)
    assert (remedy.field, remedy.where, remedy.steps_again) == (field, where, 3 if trains else 0)
    assert job.driver != "d1" and job.spec != gang.job.spec


def test_a_rank_may_say_that_it_ran_out_in_the_update(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.says(LOADED)
    gang.trains(1, 2)
    gang.fails(in_update=True)
    assert gang.remedy.job_after_failure(gang.job) is not None
    (remedy,) = read_remedies(gang.paths)
    assert remedy.where == "the update of the weights"


@pytest.mark.parametrize("said", [[], [LOADED], [LOADED, EVALUATING, EVALUATED, EXPORTING]])
def test_cpu_workers_that_run_out_while_they_load_or_export_end_at_once(tmp_path: Path, said: list[Event]) -> None:
    gang = Gang(tmp_path)
    gang.says(*said)
    with pytest.raises(OutOfMemory, match=r"^rank 1 on node n2 was killed for memory by the kernel\. Lower train\."):
        gang.remedy.job_after_kill(gang.job, KILLED)
    assert read_remedies(gang.paths) == () and gang.told.events == []


def test_a_change_is_stored_and_announced_and_the_effect_follows_with_the_next_step(tmp_path: Path) -> None:
    gang = Gang(tmp_path, train__gradient_accumulation_steps=2)
    gang.says(LOADED)
    gang.trains(1, 2, 3)
    gang.fails()
    job = gang.remedy.job_after_failure(gang.job)
    assert job is not None and job.earlier_attempts == 1, "the group was not lost"
    assert storage.list_names(gang.paths.failures) == []
    (told,) = gang.told.remedies()
    assert told["action"] == ("train.per_device_train_batch_size: 2 instead of 4 (accumulation 4 instead of 2)")
    assert told["cause"] == "out of memory in training: rank 1 ran out" and told["rung"] == "micro-batch"
    assert "start again from step 0" in told["effect"] and "3 steps computed again" in told["effect"]
    gang.remedy.begin()
    gang.remedy.look()
    assert len(gang.told.remedies()) == 1 and read_remedies(gang.paths)[0].seconds is None
    gang.trains(1)
    gang.remedy.look()
    gang.remedy.look()
    _, effect = gang.told.remedies()
    assert read_remedies(gang.paths)[0].seconds == effect["seconds"] > 0
    advice = (
        "set train.per_device_train_batch_size: 2, train.global_batch_size: ROWS, train.gradient_accumulation_steps: "
        "null in the spec"
    ).replace("ROWS", str(plan_batching(gang.job.spec).rows))
    assert advice in gang.told.events[-1].message
    (trouble,) = troubles_of(one.model_dump(mode="json") for one in gang.told.events)
    assert trouble.seconds == effect["seconds"] and (trouble.steps_again, trouble.step) == (3, 3)
    assert trouble.advice == advice


def test_the_ladder_ends_with_the_advice_and_the_changes_that_were_tried(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    write_plan(gang.paths, PLAN)
    job: Job | None = gang.job
    for micro_batch in (4, 2, 1):
        assert job is not None and job.spec.train.per_device_train_batch_size == micro_batch
        gang.says(UNSUPPORTED)
        gang.trains(1)
        gang.fails()
        if micro_batch > 1:
            job = gang.remedy.job_after_failure(job)
            gang.remedy.begin()
    assert job is not None
    with pytest.raises(OutOfMemory) as error:
        gang.remedy.job_after_failure(job)
    assert error.value.rank == 1
    assert str(error.value) == (
        "rank 1 ran out. Lower eval.per_device_eval_batch_size (8) or data.seq_len (64). Or use more workers than 2, "
        "or give each worker more memory. These changes did not suffice: train.per_device_train_batch_size 2, 1. "
        "The plan at the start expected 1.50 GiB of the 4.00 GiB for a worker."
    ), "gradient checkpointing, which the model does not support, is not named"


def test_other_failures_and_a_remedy_that_is_switched_off_change_nothing(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    assert gang.remedy.job_after_failure(gang.job) is None
    gang.fails("program")
    assert gang.remedy.job_after_failure(gang.job) is None
    off = Gang(tmp_path / "off", remedies__out_of_memory=False)
    off.says(LOADED)
    off.trains(1)
    off.fails()
    assert off.remedy.job_after_failure(off.job) is None
    with pytest.raises(OutOfMemory, match="Lower train"):
        off.remedy.job_after_kill(off.job, KILLED)
    assert read_remedies(off.paths) == () and off.told.events == []


def test_a_later_attempt_says_with_what_it_begins_or_why_it_does_not(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.says(LOADED)
    gang.trains(1)
    gang.remedy.job_after_kill(gang.job, KILLED)
    told = Told()
    spec = with_earlier_changes(gang.job.spec, gang.paths, told)  # type: ignore[arg-type]
    assert spec.train.per_device_train_batch_size == 2
    (said,) = told.remedies()
    assert (said["stage"], said["before"], said["after"]) == ("earlier", 4, 2)
    on_gpus = gang.job.spec.model_copy(
        update={"resources": gang.job.spec.resources.model_copy(update={"gpus_per_worker": 1})}
    )
    told = Told()
    assert with_earlier_changes(on_gpus, gang.paths, told) == on_gpus  # type: ignore[arg-type]
    assert [one.kind for one in told.events] == ["warning"]
    off = gang.job.spec.model_copy(
        update={"remedies": gang.job.spec.remedies.model_copy(update={"out_of_memory": False})}
    )
    assert with_earlier_changes(off, gang.paths, Told()) == off  # type: ignore[arg-type]
