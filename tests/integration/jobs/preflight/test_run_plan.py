"""The plan as a step of a run: what it chooses, keeps for the next attempt and refuses. No workers are started."""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import OutOfMemory
from jobs.data.prepared import Prepared
from jobs.drivers.finetune.memory_remedy import with_earlier_changes
from jobs.planning import plan_batching
from jobs.planning.accelerators import ACCELERATORS, GIB
from jobs.planning.memory import PROGRAM_BYTES
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import Places, earlier_choice, with_fields, with_planned_fields
from jobs.run.events import Announcer
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.remedies import Remedy, write_remedies
from jobs.run.run_plan import read_plan
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from tests.support import tiny

H100 = ACCELERATORS["H100-80"]


class Heard(NoProgress):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


class Run:
    """One run, planned several times."""

    def __init__(self, folder: pathlib.Path, spec: Spec, prepared: Prepared) -> None:
        self.spec, self.prepared, self.paths = spec, prepared, JobPaths(str(folder / "run"))
        self.heard = Heard()
        self._announce = Announcer(self.paths, self.heard)

    def planned(self, places: Places | None, most_workers: int = 2, **train: Any) -> Spec:
        """Plan an attempt, whose spec is read from the run's directory as that of a real one."""
        with_gpus = self.spec.resources.model_copy(update={"gpus_per_worker": int(bool(places and places.gpu))})
        changed = self.spec.model_copy(
            update={"train": self.spec.train.model_copy(update=train), "resources": with_gpus}
        )
        spec = Spec.model_validate_json(dump_spec(changed))
        earlier = earlier_choice(spec, self.paths)
        spec = with_earlier_changes(with_fields(spec, earlier.fields), self.paths, self._announce)
        return with_planned_fields(
            spec, earlier, self.prepared, lambda: places, self.paths, self._announce, most_workers
        )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Prepared]:
    folder = tmp_path_factory.mktemp("planned")
    model = tiny.save_model(folder / "llama", "llama")
    data = tiny.write_text(folder / "text.jsonl", 400)
    spec = tiny.spec_of(folder / "runs", model, data, resources__num_workers=2, train__max_steps=20)
    train = spec.train.model_dump() | {"global_batch_size": 64, "gradient_accumulation_steps": None}
    left = {name: value for name, value in train.items() if name not in ("per_device_train_batch_size", "zero")}
    spec = Spec.model_validate(spec.model_dump() | {"train": left})
    announce = Announcer(JobPaths(str(folder / "preparing")), NoProgress())
    prepared = ready_data(spec, "plain", announce)
    announce.close()
    return spec, prepared


@pytest.fixture(autouse=True, scope="module")
def no_kept_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def run(tmp_path: pathlib.Path, material: tuple[Spec, Prepared]) -> Run:
    return Run(tmp_path, *material)


def gpus(gib: float) -> Places:
    return Places(1, 2, 512 * GIB, replace(H100, memory_gib=gib))


def test_on_gpus_the_fastest_that_fits_is_chosen_and_its_micro_batch_stays(run: Run) -> None:
    first = run.planned(gpus(80))
    assert first.train.per_device_train_batch_size == 32 and plan_batching(first).rows == 64
    event = next(event for event in run.heard.events if event.kind == "planned")
    assert event.data["chosen"]["per_device_train_batch_size"] == 32 and event.data["remaining_s"] > 0
    kept = read_plan(run.paths)
    assert (
        kept is not None
        and kept.room_bytes is not None
        and kept.total_bytes == event.data["total_bytes"] < kept.room_bytes
    )
    again = run.planned(Places(2, 1, 512 * GIB, H100))
    assert again.train.per_device_train_batch_size == 32


def test_a_later_attempt_is_announced_at_the_pace_of_the_steps_before_it_and_stored_as_predicted(run: Run) -> None:
    run.planned(gpus(80))
    predicted = read_plan(run.paths)
    assert predicted is not None and predicted.step_s is not None
    took_s = 3 * predicted.step_s
    steps = [{"step": n, "loss": 1.0, "step_time_s": took_s, "max_memory_bytes": 1} for n in range(1, 6)]
    content = "".join(json.dumps(one) + "\n" for one in steps).encode()
    storage.write_bytes(storage.join(run.paths.metrics, f"{1:020d}-000000-0.jsonl"), content)
    run.planned(gpus(80))
    first, later = (event for event in run.heard.events if event.kind == "planned")
    assert later.data["remaining_s"] == pytest.approx(3 * first.data["remaining_s"])
    assert "at the pace of earlier steps" in later.message and "at the pace" not in first.message
    assert read_plan(run.paths) == predicted
    run.planned(replace(gpus(80), gpu=ACCELERATORS["V100-32"]))
    other = run.heard.events[-1]
    assert "at the pace" not in other.message, "no step was measured on this accelerator"
    assert "V100-32 has no bf16" in other.data["note"] and other.message.endswith(f"; {other.data['note']}")


def test_an_attempt_with_less_memory_takes_a_smaller_micro_batch(run: Run) -> None:
    assert run.planned(gpus(80)).train.per_device_train_batch_size == 32
    smaller = run.planned(gpus(3 / 1024))  # 32 rows take 4.5 MiB at least
    assert smaller.train.per_device_train_batch_size < 32 and plan_batching(smaller).rows == 64


def test_what_the_spec_gives_is_kept(run: Run) -> None:
    given = run.planned(gpus(80), per_device_train_batch_size=2)
    assert given.train.per_device_train_batch_size == 2


def test_where_the_first_attempt_left_all_at_the_defaults_a_later_one_does_too(run: Run) -> None:
    assert run.planned(Places(1, 2, 20 * GIB)).train.per_device_train_batch_size == 1
    on_gpus = run.planned(gpus(80))
    assert on_gpus.train.per_device_train_batch_size == 1 and on_gpus.train.zero.stage == 3


def test_a_larger_gang_for_which_the_micro_batch_is_too_large_chooses_that_alone_anew(run: Run) -> None:
    first = run.planned(gpus(80))
    assert first.train.per_device_train_batch_size == 32
    run.spec = run.spec.with_value("resources.num_workers", 4)
    later = run.planned(replace(gpus(80), workers_per_node=4))
    assert later.train.per_device_train_batch_size == 16 and later.train.zero == first.train.zero


def test_where_nothing_can_be_planned_a_later_attempt_keeps_the_choice_of_the_first(run: Run) -> None:
    first = run.planned(gpus(80))
    assert run.planned(None).train == first.train


def test_what_was_changed_for_memory_goes_before_the_plan_and_stays(run: Run) -> None:
    assert run.planned(gpus(80)).train.per_device_train_batch_size == 32
    change = Remedy(
        at=datetime.datetime.now(datetime.UTC), cause="c", action="a", where="training", rung="micro-batch",
        field="train.per_device_train_batch_size", before=32, after=16, gpus_per_worker=1, from_step=0, steps_again=0,
    )  # fmt: skip
    write_remedies(run.paths, [change])
    for _ in range(2):
        later = run.planned(gpus(80))
        assert later.train.per_device_train_batch_size == 16 and plan_batching(later).rows == 64


def test_no_worker_of_an_elastic_job_is_left_without_rows(run: Run) -> None:
    assert run.planned(gpus(80), most_workers=8).train.per_device_train_batch_size == 8


def test_values_that_do_not_fit_are_changed_only_if_the_remedy_may(run: Run) -> None:
    fitted = run.planned(gpus(3 / 1024), per_device_train_batch_size=32, global_batch_size=None)
    assert fitted.train.per_device_train_batch_size < 32 and plan_batching(fitted).rows == 64
    assert any("do not fit" in event.message for event in run.heard.events)
    kept = run.spec.remedies.model_copy(update={"out_of_memory": False})
    run.spec = run.spec.model_copy(update={"remedies": kept})
    with pytest.raises(OutOfMemory, match=r"a smaller train\.per_device_train_batch_size"):
        run.planned(gpus(3 / 1024), per_device_train_batch_size=32, gradient_checkpointing=False)


def test_a_job_that_cannot_fit_is_refused_with_the_ways_out(run: Run) -> None:
    with pytest.raises(OutOfMemory, match=r"needs .* GiB for each GPU.*resources\.plan: false"):
        run.planned(gpus(0.3 / 1024))
    assert read_plan(run.paths) is None


def test_small_jobs_on_cpus_are_neither_traced_nor_changed(run: Run) -> None:
    changed = run.planned(Places(1, 2, 20 * GIB))
    assert changed.train.per_device_train_batch_size == 1 and not run.heard.events
    plan = read_plan(run.paths)
    assert plan is not None and plan.is_bound and plan.step_s is None
    assert PROGRAM_BYTES < plan.total_bytes < PROGRAM_BYTES + GIB


def test_where_the_workers_will_be_is_not_known_nothing_is_planned(run: Run) -> None:
    assert run.planned(None).train == run.spec.train


def test_a_job_that_does_not_fit_the_memory_of_its_cpus_is_fitted_or_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.preflight.run_plan._TINY_BYTES", 0)
    monkeypatch.setattr("jobs.preflight.run_plan._SMALL", 0.0)
    needs = list[int]()
    for rows in (64, 1):
        kept = run.planned(Places(1, 1, 3 * GIB), per_device_train_batch_size=rows)
        plan = read_plan(run.paths)
        assert kept.train.per_device_train_batch_size == rows and plan is not None and not plan.is_bound
        needs.append(plan.total_bytes)
    fitted = run.planned(Places(1, 1, sum(needs) // 2), per_device_train_batch_size=64)
    assert fitted.train.gradient_checkpointing and plan_batching(fitted).rows == 64
    assert "chosen: gradient_checkpointing: true" in run.heard.events[-1].message
    with pytest.raises(OutOfMemory, match="for each worker"):
        run.planned(Places(1, 2, GIB // 2), per_device_train_batch_size=64)
