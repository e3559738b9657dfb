"""The gangs of a sweep are planned once: fields are chosen for all trials, and what cannot fit is refused."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import OutOfMemory
from jobs.data.prepared import Prepared
from jobs.planning.accelerators import ACCELERATORS, GIB
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import Places
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.run_plan import read_plan
from jobs.search.driver.drive import planned_base
from jobs.search.rules.varying import trial_spec
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec
from jobs.spec.zero import Zero
from tests.support import tiny

H100 = ACCELERATORS["H100-80"]
RATES = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepSpec, Prepared]]:
    folder = tmp_path_factory.mktemp("planned")
    model = tiny.save_model(folder / "llama", "llama")
    data = tiny.write_text(folder / "text.jsonl", 400)
    spec = tiny.spec_of(folder / "runs", model, data, resources__num_workers=2, train__max_steps=20)
    raw = spec.model_dump(mode="json")
    raw["data"]["eval_fraction"], raw["resources"]["gpus_per_worker"] = 0.2, 1
    raw["train"] |= {"global_batch_size": 64, "gradient_accumulation_steps": None}
    for name in ("per_device_train_batch_size", "gradient_checkpointing", "zero"):
        raw["train"].pop(name, None)
    (folder / "sweep.json").write_text(json.dumps({"kind": "sweep", "base": raw, "space": RATES}))
    sweep = load_sweep(str(folder / "sweep.json"))
    assert sweep is not None
    announce = Announcer(JobPaths(str(folder / "preparing")), NoProgress())
    prepared = ready_data(sweep.base, "plain", announce)
    announce.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield sweep, prepared


def planned(
    material: tuple[SweepSpec, Prepared], folder: pathlib.Path, places: Places | None, **space: Any
) -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
    """The planned base, and what was announced."""
    sweep, told = material[0], list[tuple[str, dict[str, Any]]]()
    if space:
        small = Zero(reduce_bucket_size=1000, prefetch_bucket_size=1000)
        base = sweep.base.model_copy(update={"train": sweep.base.train.model_copy(update={"zero": small})})
        sweep = sweep.model_copy(update={"base": base, "space": {**sweep.space, **space}})
    paths = JobPaths(str(folder / "sweep"))
    base = planned_base(sweep, material[1], lambda: places, paths, lambda kind, said, **data: told.append((kind, data)))
    return base, told


def gpus(gib: float) -> Places:
    """Two gangs of two workers on one machine."""
    return Places(1, 4, 512 * GIB, replace(H100, memory_gib=gib))


def test_what_the_base_leaves_out_is_chosen_once_for_all_trials(
    material: tuple[SweepSpec, Prepared], tmp_path: pathlib.Path
) -> None:
    base, told = planned(material, tmp_path, gpus(80))
    assert base.train.per_device_train_batch_size == 32 and base.remedies == material[0].base.remedies
    assert trial_spec(base, {"learning_rate": 1e-4}).train.per_device_train_batch_size == 32
    (data,) = [data for kind, data in told if kind == "planned"]
    assert data["chosen"]["per_device_train_batch_size"] == 32 and "remaining_s" not in data
    later, _ = planned(material, tmp_path, None)  # of a driver that does not know its machines
    assert later.train == base.train


def test_a_sweep_whose_trials_cannot_fit_is_refused(
    material: tuple[SweepSpec, Prepared], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(OutOfMemory, match=r"needs .* GiB for each GPU.*resources\.plan: false"):
        planned(material, tmp_path, gpus(0.3 / 1024))
    assert read_plan(JobPaths(str(tmp_path / "sweep"))) is None


def test_an_engine_that_does_not_fit_as_it_is_written_is_named(
    material: tuple[SweepSpec, Prepared], tmp_path: pathlib.Path
) -> None:
    sizes = {"per_device_train_batch_size": (1, 32)}
    base, _ = planned(material, tmp_path, gpus(80), **sizes)
    assert "per_device_train_batch_size" not in base.train.model_fields_set
    with pytest.raises(OutOfMemory, match=r"trials with per_device_train_batch_size 32: .*needs .* GiB"):
        planned(material, tmp_path, gpus(3 / 1024), **sizes)
