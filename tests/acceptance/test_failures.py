"""What becomes of a run that goes wrong."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from jobs.remedies.hang import limit_s
from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.spec.load import dump_spec, load_spec
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
from tests.support import tiny
from tests.support.gangs import Case, case_of, run_gang
from tests.support.hold import Hold
from tests.support.memorylimit import kill_by_signal, kill_for_memory
from tests.support.processes import wait_for

# The longest one took 206 s while other tests kept both cores busy.
pytestmark = pytest.mark.timeout(1500)

WriteSpec = Callable[..., pathlib.Path]


@pytest.mark.slow
def test_a_mistake_of_the_user_on_one_rank_ends_the_run_at_once_and_is_told_in_one_message(
    write_spec: WriteSpec, workshop: pathlib.Path
) -> None:
    """The other rank waits in a collective by then; it must not wait for its time-out of half an hour."""
    spec = write_spec(
        "bert", "labelled.jsonl", classify=True, train__max_steps=30, data__eval_fraction=0.3,
        eval__metrics=["tests.support.broken_on_rank_1:zero"],
    )  # fmt: skip
    done = fleetune("run", spec)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "only here" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and "again" not in done.stdout
    paths = newest_run(workshop)
    assert outcome_of(paths).status is Status.FAILED and read_journal(paths.metrics) == []
    assert pathlib.Path(paths.log("rank-1")).read_text().count("DataError: eval.metrics: cannot import") == 1


STEPS, EPOCH, WARMUP = 36, 12, 12


@pytest.fixture(scope="module")
def job(workshop: pathlib.Path) -> pathlib.Path:
    """Dropout, two groups with different decay, accumulation, clipping; 12 steps of warmup, which are one epoch."""
    tiny.write_text(workshop / "epoch.jsonl", EPOCH * 8)
    spec = tiny.spec_of(
        workshop / "runs", workshop / "gpt2", workshop / "epoch.jsonl", data__packing=False, train__max_steps=STEPS,
        train__global_batch_size=8, train__per_device_train_batch_size=2, train__warmup_ratio=WARMUP / STEPS,
        train__max_grad_norm=0.5,
        checkpoint__save_steps=5, remedies__out_of_memory=False, remedies__hang=True,
    )  # fmt: skip
    file = workshop / "disturbed.json"
    file.write_bytes(dump_spec(spec))
    return file


@pytest.fixture(scope="module")
def hold(workshop: pathlib.Path) -> Hold:
    """Holds runs of the job: without it, one may have ended before this process has seen it at a step."""
    return Hold(workshop)


@contextlib.contextmanager
def begun(
    job: pathlib.Path, workshop: pathlib.Path, hold: Hold, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], JobPaths]]:
    """A run of the job that has begun."""
    before = runs_in(workshop)
    with started(job, **hold.environment, **environment) as process:
        deadline = time.monotonic() + BEGINS_WITHIN_S
        while not (found := runs_in(workshop) - before):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        yield process, JobPaths(str(next(iter(found))))


@dataclass(frozen=True)
class Starved:
    """A run of the job that ended when one of its workers was killed for memory.

    Attributes:
        by_the_kernel: False where no control group may be made: then the run was interrupted.
        reached: its last step.
    """

    paths: JobPaths
    by_the_kernel: bool
    code: int
    output: str
    outcome: Outcome
    reached: int


@pytest.fixture(scope="module")
def starved(job: pathlib.Path, workshop: pathlib.Path, hold: Hold) -> Starved:
    hold.at(6)
    with begun(job, workshop, hold) as (process, paths):
        wait_for_step(process, paths, 6)
        wait_for(lambda: committed_steps(paths), "there is a checkpoint")
        if not (by_the_kernel := kill_for_memory(workers_of(process)[0], hold.release)):
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    reached = max(record["step"] for record in read_journal(paths.metrics))
    return Starved(paths, by_the_kernel, process.returncode, output, outcome_of(paths), reached)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[pathlib.Path], Case]:
    """The same job in one go, with no Ray; computed once."""
    done: dict[str, Case] = {}

    def case(job: pathlib.Path) -> Case:
        if not done:
            folder = tmp_path_factory.mktemp("undisturbed")
            done["case"] = case_of(folder, "undisturbed", load_spec(str(job)))
            run_gang(folder, 2, [done["case"]])
        return done["case"]

    return case


def has_saved(paths: JobPaths, step: int) -> bool:
    return committed_steps(paths)[-1:] >= [step]


def check_same(paths: JobPaths, case: Case, tolerance: float) -> None:
    """Every step is there, with the undisturbed run's loss, rate and samples."""
    records = read_steps(paths)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in records] == pytest.approx(case.record("loss"), abs=tolerance)
    for same in ("learning_rate", "chain", "tokens"):
        assert [record[same] for record in records] == case.record(same)


@pytest.mark.slow
def test_workers_killed_in_the_warmup_and_in_the_second_epoch_are_replaced_and_nothing_changes(
    job: pathlib.Path,
    workshop: pathlib.Path,
    hold: Hold,
    undisturbed: Callable[[pathlib.Path], Case],
    tmp_path: pathlib.Path,
) -> None:
    """The only one under `fleetune run` and with Ray Data: losses, rates and samples are those of a run without Ray
    that nothing disturbed.
    """
    first_kill, second_kill, by_ray = 10, EPOCH + 10, tmp_path / "read-by-ray"
    hold.at(first_kill)
    with begun(job, workshop, hold, FLEETUNE_TESTS_RAY_DATA=str(by_ray)) as (process, paths):
        for step, rank in ((first_kill, 1), (second_kill, 0)):
            wait_for_step(process, paths, step)
            wait_for(partial(has_saved, paths, step - 5), "it has saved five steps ago")
            wait_for(lambda: len(workers_of(process)) == 2, "there are two")
            begun_again = partial(lambda count: len(starts(paths)) > count, len(starts(paths)))
            kill_by_signal(workers_of(process)[rank], partial(wait_for, begun_again, "others go on", BEGINS_WITHIN_S))
            hold.at(second_kill)
        hold.release()
        output, _ = process.communicate(timeout=BEGINS_WITHIN_S)
    assert process.returncode == 0, output
    first, second, third = starts(paths)
    assert first == 0 and 5 <= second < WARMUP and EPOCH + 5 <= third < 2 * EPOCH
    assert len(by_ray.read_text().splitlines()) == 3 * 2, "each start, on each worker"
    assert output.count("resumed from the checkpoint of step") == 2
    assert "workers were lost and are started again (2 so far)" in output
    troubles = outcome_of(paths).troubles
    assert [one.remedy for one in troubles] == ["lost_workers"] * 2 and all(one.seconds for one in troubles), troubles
    assert min(record["grad_norm"] for record in read_steps(paths)) > 0.5, "clipping was active"
    check_same(paths, undisturbed(job), 1e-6)


@pytest.mark.slow
def test_a_worker_that_is_killed_for_memory_ends_the_run_with_one_line_that_says_what_to_change(
    starved: Starved,
) -> None:
    """The kernel's kill is told from any other: without the remedy, the run is not tried again."""
    if not starved.by_the_kernel:
        pytest.skip("no control group may be made here")
    output = starved.output
    assert starved.code == 1, output
    (said,) = [line for line in output.splitlines() if "Z failed: " in line]
    assert re.search(r"failed: rank [01] on node \S+ was killed for memory by the kernel: it held [\d.]+ GiB", said), (
        said
    )
    assert "Lower train.per_device_train_batch_size (2) or data.seq_len (64)" in said, said
    assert f"resume: fleetune run --resume {starved.paths.root}" in output and "docs.ray.io" not in output
    assert starved.outcome.out_of_memory and starved.outcome.step >= 6


@pytest.mark.slow
def test_a_signal_to_all_leaves_a_checkpoint_that_can_be_exported_and_gone_on_with_on_other_workers(
    starved: Starved, job: pathlib.Path, hold: Hold, undisturbed: Callable[[pathlib.Path], Case], tmp_path: pathlib.Path
) -> None:
    """The run goes on that was killed for memory; it is ended as by `timeout`, and goes on once more."""
    paths = starved.paths
    hold.at(starved.reached + 5)  # the request to stop ends it
    with started("--resume", paths.root, **hold.environment) as process:
        wait_for_step(process, paths, starved.reached + 5)
        process.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "resumed from the checkpoint of step" in output
    assert f"fleetune run --resume {paths.root}" in output
    outcome = outcome_of(paths)
    assert outcome.status is Status.INTERRUPTED and starved.reached < outcome.step < STEPS
    assert committed_steps(paths)[-1] == outcome.step
    assert not pathlib.Path(paths.model).exists()
    exported = fleetune("export", paths.root, "--to", tmp_path / "model")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    refused = fleetune("run", job, "--resume", paths.root, "--set", "train.learning_rate=0.5")
    assert refused.returncode == 2 and "train.learning_rate: 0.001 -> 0.5" in refused.stderr
    done = fleetune("run", "--resume", paths.root, "--set", "resources.num_workers=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from the checkpoint of step {outcome.step}, written by 2 workers" in done.stdout
    assert pathlib.Path(paths.model).exists()
    check_same(paths, undisturbed(job), 1e-4)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(write_spec: WriteSpec, workshop: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """While the workers cannot answer the first one: a driver that waited for them would not end."""
    spec = write_spec("gpt2", train__max_steps=30_000, checkpoint__save_minutes=0.1)  # too few for Ray Data
    hold = Hold(tmp_path)
    with started(spec, **hold.environment) as process:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if "checkpoint of step" in line:  # by the clock: the spec has no save_steps
                break
        hold.at(0, heeds=False)
        hold.wait()
        process.send_signal(signal.SIGINT)
        for line in process.stdout:  # two signals that wait together are one
            seen += line
            if "Ctrl-C again ends at once" in line:
                break
        time.sleep(0.5)  # as one who has read that; sooner, both would count as one
        process.send_signal(signal.SIGINT)
        seen += process.communicate(timeout=300)[0]
    assert process.returncode == 130, seen
    assert "interrupted twice" in seen and "Traceback" not in seen
    assert outcome_of(newest_run(workshop)).status is Status.INTERRUPTED


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_killed_and_the_run_goes_on(
    job: pathlib.Path, workshop: pathlib.Path, hold: Hold
) -> None:
    """The other rank waits in a collective, whose time-out is half an hour."""
    hold.at(8)
    with begun(job, workshop, hold) as (process, paths):
        wait_for_step(process, paths, 8)
        wait_for(lambda: committed_steps(paths), "there is a checkpoint")
        os.kill(hold.wait(), signal.SIGSTOP)  # so that the other one waits for it already
        hold.release()
        output, _ = process.communicate(timeout=BEGINS_WITHIN_S)
    assert process.returncode == 0, output
    found, again = [one for one in read_journal(paths.events) if one["kind"] == "remedy"]
    data = found["data"]
    longest_s = max(record["step_time_s"] for record in read_journal(paths.metrics))
    # Steps of up to 3.3 s give 20 s. 10 s are for two looks, each with a process that Ray starts on the node.
    assert data["quiet_s"] < limit_s(longest_s) + 10.0, (data, longest_s)
    assert again["data"]["seconds"] < 60, again
    assert data["remedy"] == "hang" and data["rank"] in (0, 1) and data["state"] == "T", data
    assert output.count("is stopped by a signal") == 2, "once when it is killed, and once at the end"
    assert "starting the workers again" not in output and "goes on" not in output
    assert "was killed: starting the workers again" in pathlib.Path(paths.log("driver")).read_text()
    (stopped, other) = (
        pathlib.Path(paths.log(f"rank-{rank}")).read_text() for rank in (data["rank"], 1 - data["rank"])
    )
    assert "most recent call first" in other and "torch/distributed" in other
    assert "/jobs/training/loop/" in stopped and data["stack"], "py-spy reads the stack that it cannot write"
    assert len(starts(paths)) == 2 and starts(paths)[1] >= 5
