"""The final run of a sweep, without a Ray: its spec, its directory, and what becomes of its outcome."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import SpecError
from jobs.drivers.stop_request import StopRequest
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import open_run
from jobs.search.driver.final import (
    SweepDriver,
    final_paths,
    final_spec,
    pass_on_save_request,
    with_final_run,
    with_outcome_of_final_run,
)
from jobs.search.rules.varying import trial_spec
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec, load_sweep
from jobs.spec.sweep import SweepSpec

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
FOUND = Outcome(status=Status.SUCCEEDED, step=9, metrics={"eval_loss": 0.5}, evaluated_step=9, ended_at=NOW)
BASE: dict[str, Any] = {
    "model": {"path": "model", "task": "sequence-classification", "num_labels": 2},
    "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.1},
    "eval": {"metrics": ["loss", "accuracy"], "eval_steps": 5, "per_device_eval_batch_size": 3},
    "checkpoint": {"save_steps": 7, "metric_for_best_model": "accuracy", "load_best_model_at_end": True},
}


def sweep_in(folder: Path, **data: Any) -> SweepSpec:
    base = {**BASE, "data": {**BASE["data"], **data}}
    (folder / "sweep.json").write_text(json.dumps({"kind": "sweep", "name": "found", "base": base, "then": "final"}))
    sweep = load_sweep(str(folder / "sweep.json"))
    assert sweep is not None
    return sweep


def trials_of(sweep: SweepSpec, rate: float) -> Any:
    """The trials of a search that has found this rate."""
    values = {"learning_rate": rate}
    best = SimpleNamespace(spec=trial_spec(sweep.base, values), values=values, step=9, total_steps=9)
    return SimpleNamespace(best=best, sweep=sweep, trials={1: best}, total_steps=9)


def test_it_is_the_best_trial_without_held_out_samples_and_what_needs_them(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    best = trial_spec(sweep.base, {"learning_rate": 3e-4, "warmup_ratio": 0.1})
    spec = final_spec(best, sweep.name)
    (tmp_path / "final.json").write_bytes(dump_spec(spec))
    assert load_spec(str(tmp_path / "final.json")) == spec
    assert spec.name == "found-final" and not spec.data.has_eval and spec.checkpoint.save_steps == 7
    assert spec.eval.metrics == ("loss",) and spec.eval.eval_steps is None and spec.eval.per_device_eval_batch_size == 3
    changed = {name: getattr(best, name) for name in ("name", "data", "eval", "checkpoint")}
    assert spec.model_copy(update=changed) == best
    assert len(final_spec(best, "a" * 63).name) <= 63


def test_it_has_no_bound_on_forgetting_because_it_measures_nothing(tmp_path: Path) -> None:
    base = Spec.model_validate(
        {
            "model": {"path": "/m", "task": "causal-lm"},
            "data": {"train": "/rows.jsonl", "format": "text", "eval_fraction": 0.1},
            "eval": {"general": "/general.txt", "eval_steps": 5},
            "checkpoint": {"metric_for_best_model": "loss"},
            "remedies": {"forgetting": {"max_general_loss_increase": 0.02}},
        }
    )
    spec = final_spec(trial_spec(base, {"learning_rate": 3e-4}), "found")
    (tmp_path / "final.json").write_bytes(dump_spec(spec))
    assert load_spec(str(tmp_path / "final.json")).remedies.forgetting.max_general_loss_increase is None


def test_where_the_held_out_samples_are_others_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"on the same samples again. Use then: export"):
        sweep_in(tmp_path, eval="held.jsonl", eval_fraction=None)


def test_the_same_values_have_the_same_directory_and_others_the_next_one(tmp_path: Path) -> None:
    sweep, root = sweep_in(tmp_path), JobPaths(str(tmp_path / "found-1"))
    first, second = (final_spec(trials_of(sweep, rate).best.spec, sweep.name) for rate in (1e-4, 2e-4))
    assert final_paths(root, first) == (JobPaths(f"{root.root}/final"), False)
    open_run(first, f"{root.root}/final")
    assert final_paths(root, second) == (JobPaths(f"{root.root}/final-2"), False)
    open_run(second, f"{root.root}/final-2")
    more_often = first.checkpoint.model_copy(update={"save_steps": 1})
    assert final_paths(root, first.model_copy(update={"checkpoint": more_often})) == (
        JobPaths(f"{root.root}/final"),
        True,
    )
    assert final_paths(root, second) == (JobPaths(f"{root.root}/final-2"), True)


def test_one_that_has_succeeded_is_not_trained_again(tmp_path: Path) -> None:
    sweep, root, said = sweep_in(tmp_path), JobPaths(str(tmp_path / "found-1")), list[str]()
    trials = trials_of(sweep, 1e-4)
    paths = open_run(final_spec(trials.best.spec, sweep.name), f"{root.root}/final")
    write_outcome(paths, Outcome(status=Status.SUCCEEDED, step=10, model_path=paths.model, ended_at=NOW))
    nothing: Any = None
    driver = SweepDriver(root, {}, nothing, lambda kind, text, **data: said.append(text), nothing, None, True)  # type: ignore[arg-type]
    outcome = with_final_run(trials, FOUND, driver)
    assert outcome == FOUND.model_copy(update={"model_path": paths.model})
    assert said == [f"the final run has succeeded before: {paths.root}"]


def test_its_failure_is_the_sweeps_and_says_what_to_do() -> None:
    paths = JobPaths("/runs/found-1/final")
    failed = Outcome(status=Status.FAILED, reason="rank 1 is gone.", lost=True, step=3, ended_at=NOW)
    outcome = with_outcome_of_final_run(FOUND, failed, paths)
    assert outcome.status is Status.FAILED and outcome.lost and outcome.model_path is None
    assert str(outcome.reason).startswith("the search has ended, but the final run failed: rank 1 is gone. Its logs: ")
    assert "--resume trains it again" in str(outcome.reason)
    assert (outcome.metrics, outcome.step, outcome.evaluated_step) == (FOUND.metrics, 9, 9)
    for why in ("bad_input", "diverged"):
        useless = with_outcome_of_final_run(FOUND, failed.model_copy(update={why: True}), paths)
        assert getattr(useless, why) and "--resume" not in str(useless.reason)


def test_one_that_was_stopped_interrupts_the_sweep() -> None:
    stopped = Outcome(status=Status.INTERRUPTED, reason="stopped on request after step 3", step=3, ended_at=NOW)
    outcome = with_outcome_of_final_run(FOUND, stopped, JobPaths("/runs/found-1/final"))
    assert outcome.status is Status.INTERRUPTED and str(outcome.reason).endswith("stopped on request after step 3")


def test_what_is_asked_of_the_sweep_is_asked_of_it(tmp_path: Path) -> None:
    sweep, final, stop = JobPaths(str(tmp_path)), JobPaths(str(tmp_path / "final")), StopRequest()

    def look() -> None:
        stop.look_for_file(sweep)
        pass_on_save_request(sweep, [final])

    look()
    assert not (tmp_path / "final").exists() and not stop.asked
    for request in ("stop", "save"):
        (tmp_path / request).write_text("somebody")
    look()
    assert stop.asked and (tmp_path / "final/save").exists()
    assert not (tmp_path / "save").exists()
