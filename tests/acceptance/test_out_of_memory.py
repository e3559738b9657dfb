"""A run that runs out of memory goes on by itself, and computes what a run with the new values would have computed."""

from __future__ import annotations

import datetime
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Status
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.run.remedies import read_remedies
from jobs.storage.journal import read_journal
from tests.acceptance.conftest import (
    BEGINS_WITHIN_S,
    fleetune,
    newest_run,
    outcome_of,
    runs_in,
    started,
    starts,
    wait_for_step,
    workers_of,
)
from tests.support.gangs import SCARCE
from tests.support.hold import Hold
from tests.support.memorylimit import kill_for_memory
from tests.support.processes import wait_for

WriteSpec = Callable[..., pathlib.Path]
STEPS, SAVED = 12, 4
# Bytes of the tensors of a step, beside the bucket of gradients: two rows of this GPT-2 take 2.5 MB, one row 1.44 MB,
# and one with checkpointing 0.92 MB.
ONE_ROW_WITH_CHECKPOINTING = 4 * 50_000_000 + 1_180_000
# The forward pass of an evaluation of this Llama: 1.31 MB with eight rows, 0.72 with four, 0.43 with two.
TWO_ROWS_EVALUATED = 570_000
# Bounds for the time from running out of memory to the end of the next step: 15 s, or on a busy machine this many times
# the run's own first start. A restart does the work of a start, but its files are in the page cache.
QUIET_S, BUSY_STARTS = 15.0, 2.5


def run_scarce(limits: dict[str, int], *arguments: str | pathlib.Path) -> Any:
    """`fleetune run` with workers whose memory is limited."""
    return fleetune("run", *arguments, PYTHONPATH=SCARCE, SCARCE=json.dumps(limits))


def remedies_told(paths: JobPaths) -> list[dict[str, Any]]:
    return [event["data"] for event in read_journal(paths.events) if event["kind"] == "remedy"]


def first_start_s(paths: JobPaths) -> float:
    """Seconds from the order to start the first workers to the end of the first step."""
    orders = [event["at"] for event in read_journal(paths.events) if event["data"].get("phase") == "workers"]
    return float(next(iter(read_journal(paths.metrics)))["at"]) - datetime.datetime.fromisoformat(orders[0]).timestamp()


@pytest.mark.slow
def test_the_ladder_is_climbed_until_a_step_fits_and_the_losses_are_those_of_a_run_that_began_there(
    write_spec: WriteSpec, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """With dropout, whose masks depend on the micro-batch. Only rank 1 runs out of memory."""
    spec = write_spec(
        "gpt2", train__max_steps=STEPS, train__per_device_train_batch_size=2, train__gradient_accumulation_steps=2,
        checkpoint__save_steps=SAVED, checkpoint__save_total_limit=9,
    )  # fmt: skip
    done = run_scarce({"from_step": 6, "training": ONE_ROW_WITH_CHECKPOINTING}, spec)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = newest_run(workshop)
    changes = [(one.field, one.before, one.after) for one in outcome_of(paths).remedies]
    micro_batch, checkpointing = "train.per_device_train_batch_size", "train.gradient_checkpointing"
    assert changes == [(micro_batch, 2, 1), (checkpointing, False, True)]
    assert starts(paths) == [0, SAVED, SAVED]
    first, last = read_remedies(paths)
    assert (first.where, first.from_step, first.steps_again) == ("training", SAVED, 2)
    assert last.seconds is not None and last.steps_again == 2
    told = remedies_told(paths)
    assert all({"cause", "action", "effect", "where", "rung"} <= one.keys() for one in told if "seconds" not in one)
    _, trouble = outcome_of(paths).troubles
    lost_s = [one.seconds for one in (first, last) if one.seconds is not None]  # the first may have trained no step
    assert trouble.seconds == last.seconds and 0 < min(lost_s) <= max(QUIET_S, BUSY_STARTS * first_start_s(paths))
    assert (trouble.remedy, trouble.steps_again) == ("out_of_memory", 2)
    assert "rank 1 on" in told[0]["cause"] and "simulated" not in told[0]["action"]
    assert (
        "next time: set train.per_device_train_batch_size: 1, train.global_batch_size: 8, "
        "train.gradient_accumulation_steps: null, train.gradient_checkpointing: true in the spec" in done.stdout
    )
    assert "workers were lost" not in done.stdout
    shown = fleetune("show", paths.root)
    assert shown.stdout.count("\nremedy") == 2 and "next time" in shown.stdout
    assert json.loads(pathlib.Path(paths.spec).read_text())["train"]["per_device_train_batch_size"] == 2

    begun_there = JobPaths(str(tmp_path / "begun-there"))
    shutil.copytree(paths.root, begun_there.root)
    for step in range(SAVED + 1, STEPS + 1):
        shutil.rmtree(begun_there.checkpoint(step), ignore_errors=True)
    for gone in (begun_there.outcome, begun_there.remedies):
        pathlib.Path(gone).unlink()
    for folder in (begun_there.metrics, begun_there.events):
        shutil.rmtree(folder)
    again = fleetune(
        "run", "--resume", begun_there.root, "--set", f"{micro_batch}=1", "--set", "train.global_batch_size=8",
        "--set", "train.gradient_accumulation_steps=null", "--set", f"{checkpointing}=true",
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    there, here = read_steps(begun_there), read_steps(paths)
    assert [one["step"] for one in here] == list(range(1, STEPS + 1))
    assert [one["step"] for one in there] == list(range(SAVED + 1, STEPS + 1))
    for column in ("loss", "grad_norm"):
        expected = [one[column] for one in there]
        assert [one[column] for one in here[SAVED:]] == pytest.approx(expected, abs=1e-6)
    assert [one["chain"] for one in here[SAVED:]] == [one["chain"] for one in there]


@pytest.mark.slow
def test_an_evaluation_is_made_smaller_and_a_later_attempt_begins_with_that(
    write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    """A training for which nothing on the ladder is left fails with the advice, and with all that was tried there."""
    spec = write_spec(
        train__max_steps=STEPS, train__per_device_train_batch_size=2, train__global_batch_size=8,
        train__gradient_checkpointing=True, checkpoint__save_steps=SAVED, data__eval_fraction=0.4,
        eval__per_device_eval_batch_size=8,
    )  # fmt: skip
    limits = {"evaluation": TWO_ROWS_EVALUATED}
    done = run_scarce({**limits, "from_step": 6, "training": 0}, spec)
    assert done.returncode == 1, done.stdout + done.stderr
    paths = newest_run(workshop)
    outcome = outcome_of(paths)
    assert outcome.status is Status.FAILED and outcome.out_of_memory and outcome.rank == 1
    batch = "eval.per_device_eval_batch_size"
    assert [(one.field, one.after) for one in outcome.remedies] == [
        (batch, 4), (batch, 2), ("train.per_device_train_batch_size", 1),
    ]  # fmt: skip
    assert [one.where for one in outcome.remedies] == ["evaluation", "evaluation", "training"]
    tried = "These changes did not suffice: train.per_device_train_batch_size 1."
    assert f"{tried} The plan at the start expected at most 0.6" in str(outcome.reason)
    assert "Lower eval.per_device_eval_batch_size (2) or data.seq_len (64)" in str(outcome.reason)

    before = len(remedies_told(paths))
    again = run_scarce(limits, "--resume", paths.root)
    assert again.returncode == 0, again.stdout + again.stderr
    later = remedies_told(paths)[before:]
    assert [(one["field"], one["before"], one["after"], one["stage"]) for one in later] == [
        (batch, 8, 2, "earlier"), ("train.per_device_train_batch_size", 2, 1, "earlier"),
    ]  # fmt: skip
    assert outcome_of(paths).remedies == outcome.remedies and starts(paths)[-1] == SAVED


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_for_memory_goes_on_with_a_smaller_micro_batch(
    write_spec: WriteSpec, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The kernel kills the process, so no exception is reported."""
    spec = write_spec(
        train__max_steps=20, train__per_device_train_batch_size=2, train__global_batch_size=8,
        checkpoint__save_steps=SAVED,
    )  # fmt: skip
    before, hold = runs_in(workshop), Hold(tmp_path)
    hold.at(SAVED + 1)
    with started(spec, **hold.environment) as process:
        wait_for(lambda: runs_in(workshop) - before, "the run has begun", BEGINS_WITHIN_S)
        (root,) = runs_in(workshop) - before
        paths = JobPaths(str(root))
        wait_for_step(process, paths, SAVED + 1)
        wait_for(lambda: committed_steps(paths), "there is a checkpoint")
        if not kill_for_memory(workers_of(process)[1], hold.release):
            pytest.skip("no control group may be made here")
        output, _ = process.communicate(timeout=BEGINS_WITHIN_S)
    assert process.returncode == 0, output
    (remedy,) = outcome_of(paths).remedies
    assert "was killed for memory by the kernel" in remedy.cause and remedy.where == "training"
    assert (remedy.field, remedy.after) == ("train.per_device_train_batch_size", 1)
    assert len(starts(paths)) == 2 and starts(paths)[1] == remedy.from_step >= SAVED
    assert [one["step"] for one in read_steps(paths)] == list(range(1, 21))


@pytest.mark.slow
def test_without_the_remedy_a_run_that_runs_out_of_memory_ends_with_the_advice(
    write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    spec = write_spec(train__per_device_train_batch_size=2, remedies__out_of_memory=False)
    done = run_scarce({"training": 0}, spec)
    assert done.returncode == 1, done.stdout + done.stderr
    paths = newest_run(workshop)
    outcome = outcome_of(paths)
    assert outcome.out_of_memory and outcome.remedies == () and remedies_told(paths) == []
    assert "Lower train.per_device_train_batch_size (2)" in str(outcome.reason) and starts(paths) == [0]
