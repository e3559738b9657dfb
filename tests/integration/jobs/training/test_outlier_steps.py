"""Outlying steps are skipped, and a run in trouble goes back: on two workers, under ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jobs.data.order.digest_chain import EMPTY_CHAIN, extended, from_hex, row_digests, step_digest
from jobs.data.order.stream import step_plan
from jobs.remedies.outliers import WINDOW
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.storage.journal import Record, read_journal
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang

pytestmark = pytest.mark.slow

STEPS, BAD = 40, 25  # steps are counted from 1
# Clipping would hide what a step with a large gradient costs, and a falling rate would repair it.
UNFORGIVING = {"train__max_grad_norm": 0.0, "train__lr_scheduler_type": "constant_with_warmup"}
OFF = {"remedies__outlier_steps": False}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All runs, in as few gangs as can be: each start costs seconds."""
    folder = tmp_path_factory.mktemp("outliers")
    model, text = tiny.save_model(folder / "llama", "llama"), tiny.write_text(folder / "text.jsonl", 400)

    def spec(**changes: Any) -> Any:
        batch = {"train__global_batch_size": 8, "train__per_device_train_batch_size": 4}
        rest = {"train__max_steps": STEPS, "train__learning_rate": 1e-2, "eval__eval_on_start": False}
        return tiny.spec_of(folder, model, text, **{**batch, **rest, **UNFORGIVING, **changes})

    excessive = {"train__learning_rate": 1.0, "train__warmup_ratio": 0.1}
    of_case: dict[str, dict[str, Any]] = {
        "clean": {}, "clean, off": OFF, "poisoned": {}, "poisoned, off": OFF, "poisoned, interrupted": {},
        "poisoned in stage 2": {"train__zero__stage": 2},
        "poisoned in bf16 and stage 1": {"train__bf16": True, "train__zero__stage": 1},
        "nan": {}, "damaged": {"checkpoint__save_steps": 5}, "damaged, from the start": {}, "bad data": {},
        "excessive rate": excessive, "excessive rate, off": {**excessive, **OFF},
        "excessive rate, evaluated": {
            **excessive, "data__eval_fraction": 0.1, "eval__eval_on_start": True, "eval__eval_steps": 6,
        },
    }  # fmt: skip
    plain = {name: case_of(folder, name, spec(**changes)) for name, changes in of_case.items()}
    changes: dict[str, dict[str, Any]] = {
        **{name: {"poisoned": (BAD,), "poison": "logits"} for name in plain if "poisoned" in name},
        "nan": {"poisoned": (12, 15), "poison": "nan"},
        "damaged": {"damaged_at": BAD},
        "damaged, from the start": {"damaged_at": BAD},
        "bad data": {"poisoned": (25, 26, 27, 28), "poison": "logits"},
    }
    every = {name: dataclasses.replace(case, **changes.get(name, {})) for name, case in plain.items()}
    interrupted = every["poisoned, interrupted"]
    every["poisoned, interrupted"] = dataclasses.replace(interrupted, stop_at=BAD)
    run_gang(folder, 2, [*every.values(), interrupted])
    return every


def by_step(case: Case, column: str) -> list[Any]:
    """The newest value of each step."""
    records = {record["step"]: record[column] for record in read_journal(case.paths.metrics)}
    assert sorted(records) == list(range(1, STEPS + 1))
    return [records[step] for step in sorted(records)]


def final_loss(case: Case, steps: int = 5) -> float:
    """The mean loss of the last steps."""
    return float(np.mean(by_step(case, "loss")[-steps:]))


def acts(case: Case, stage: str) -> list[Record]:
    told = [event for event in read_journal(case.paths.events) if event["kind"] == "remedy"]
    return [event["data"] for event in told if event["data"].get("stage") == stage]


def test_a_clean_run_computes_what_it_computes_without_the_remedy(cases: dict[str, Case]) -> None:
    """The time is that of all runs of the file."""
    for column in ("loss", "grad_norm", "learning_rate", "chain"):
        assert cases["clean"].record(column) == cases["clean, off"].record(column)
    assert not acts(cases["clean"], "skip")


@pytest.mark.parametrize("kind", ["", " in stage 2", " in bf16 and stage 1"])
def test_a_poisoned_batch_costs_at_most_half_a_percent_and_without_the_remedy_more(
    cases: dict[str, Case], kind: str
) -> None:
    """Each kind has another optimizer of DeepSpeed."""
    case, clean = cases[f"poisoned{kind}"], cases["clean"]
    assert final_loss(case) == pytest.approx(final_loss(clean), rel=0.005)
    assert final_loss(cases["poisoned, off"]) > 1.02 * final_loss(clean)
    assert not acts(cases["poisoned, off"], "skip")
    assert [act["step"] for act in acts(case, "skip")] == [BAD]
    assert case.record("loss")[BAD - 1] > 2 * clean.record("loss")[BAD - 1]
    assert case.record("loss")[: BAD - 1] == pytest.approx(clean.record("loss")[: BAD - 1], rel=0.01 if kind else 0)
    commit = read_commit(case.paths, STEPS)
    assert commit.optimizer_step == STEPS - 1 and commit.history.outliers == 1


def test_a_run_that_is_interrupted_right_after_a_skip_is_the_undisturbed_one(cases: dict[str, Case]) -> None:
    interrupted, undisturbed = cases["poisoned, interrupted"], cases["poisoned"]
    assert BAD in committed_steps(interrupted.paths)
    commits = [read_commit(case.paths, STEPS) for case in (interrupted, undisturbed)]
    assert commits[0].history.outliers == commits[1].history.outliers == 1
    assert commits[0].history.losses == pytest.approx(commits[1].history.losses, rel=1e-6)
    assert by_step(interrupted, "loss") == pytest.approx(by_step(undisturbed, "loss"), abs=1e-6)


def test_gradients_that_are_not_finite_do_not_enter_the_window(cases: dict[str, Case]) -> None:
    assert [act["step"] for act in acts(cases["nan"], "skip")] == [12, 15]
    history = read_commit(cases["nan"].paths, STEPS).history
    assert len(history.losses) == len(history.norms) == WINDOW and np.isfinite(history.norms).all()


def test_damaged_weights_are_taken_from_the_checkpoint_before_the_suspected_batches(cases: dict[str, Case]) -> None:
    """The weights are multiplied before step 25: steps 25 to 27 are outlying, and step 15 is safe."""
    case, clean = cases["damaged"], cases["clean"]
    (act,) = acts(case, "rollback")
    assert (act["step"], act["to_step"], act["rate_factor"], act["barred"]) == (27, 15, 1.0, [16, 27])
    assert by_step(case, "learning_rate") == clean.record("learning_rate")
    assert final_loss(case) == pytest.approx(final_loss(clean), rel=0.02)
    assert by_step(case, "chain") == clean.record("chain")
    history = read_commit(case.paths, STEPS).history
    assert history.rollbacks == 1 and history.steps_again == 12 and history.outliers == 3


def test_without_a_checkpoint_the_run_goes_back_to_its_start(cases: dict[str, Case]) -> None:
    case, clean = cases["damaged, from the start"], cases["clean"]
    (act,) = acts(case, "rollback")
    assert act["to_step"] == 0
    assert by_step(case, "loss")[:17] == pytest.approx(clean.record("loss")[:17], abs=1e-6)
    assert read_commit(case.paths, STEPS).optimizer_step == STEPS - 11


def test_batches_that_are_outlying_with_earlier_weights_too_are_skipped(cases: dict[str, Case]) -> None:
    case = cases["bad data"]
    assert len(acts(case, "rollback")) == 1
    assert [act["step"] for act in acts(case, "skip")] == [25, 26, 27, 25, 26, 27, 28]
    assert by_step(case, "loss")[-1] < 0.7 * by_step(case, "loss")[0]


def test_a_run_with_an_excessive_rate_begins_again_with_a_measured_one(cases: dict[str, Case]) -> None:
    """It then computes what a new run with this rate computes, to the last digit."""
    case = cases["excessive rate"]
    (act,) = acts(case, "rollback")
    assert act["to_step"] == 0 and act["step"] < 20 and act["barred"] is None
    assert "the loss after one step at several rates" in act["action"]
    assert final_loss(case) <= 1.02 * final_loss(cases["clean"])
    train = case.spec.train.model_copy(update={"learning_rate": act["rate_factor"]})
    new = case_of(case.folder, "measured rate", case.spec.model_copy(update={"train": train}))
    run_gang(case.folder, 2, [new])
    for column in ("loss", "grad_norm", "learning_rate", "chain"):
        assert by_step(case, column) == new.record(column)


def test_an_excessive_rate_diverges_without_the_remedy(cases: dict[str, Case]) -> None:
    case = cases["excessive rate, off"]
    assert not acts(case, "rollback") and max(by_step(case, "loss")) > 1.5 * by_step(case, "loss")[0]
    # How near the last steps come depends on the processor: 5 and 8 % were seen. The second half was 27 % worse.
    assert final_loss(case, STEPS // 2) > 1.1 * final_loss(cases["clean"], STEPS // 2)


def test_the_first_evaluation_tells_an_excessive_rate(cases: dict[str, Case]) -> None:
    """Eight losses, which the other rules need, are not there yet."""
    case = cases["excessive rate, evaluated"]
    (act,) = acts(case, "rollback")
    assert (act["step"], act["to_step"]) == (6, 0) and "eval_loss rose from" in act["cause"]
    assert "the loss after one step at several rates" in act["action"]
    losses = {one["step"]: one["eval_loss"] for one in read_journal(case.paths.metrics) if "eval_loss" in one}
    assert sorted(losses) == [6, 12, 18, 24, 30, 36, STEPS] and losses[STEPS] < 5.0


def test_the_chain_of_a_run_that_went_back_is_that_of_the_plan(cases: dict[str, Case]) -> None:
    case = cases["damaged"]
    split = case.prepared.split("train")
    plan, digests, chain = step_plan(case.spec, split), row_digests(split.index.sample_ids), EMPTY_CHAIN
    for step, said in enumerate(by_step(case, "chain")):
        rows = plan.rows_of_step(step)
        chain = extended(chain, step_digest(digests[rows], np.arange(len(rows))))
        assert from_hex(said) == chain
