"""Which errors of a worker are returned, and which are raised for Ray Train to heal."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.errors import DataError, RunFailed, StorageError, StorageOutage
from jobs.remedies.hang import Doing
from jobs.remedies.outliers import rollback_of
from jobs.run.attempts import take_run
from jobs.run.checkpoints import Best, commit_path, newest_step
from jobs.run.outcome import Status
from jobs.run.paths import JobPaths
from jobs.run.record import how_to_go_on
from jobs.spec.evaluation import Checkpoint, Eval
from jobs.storage import files as storage
from jobs.training import ending, worker_context
from jobs.training.faults import Fault
from jobs.training.loop import loop, worker
from jobs.training.loop.state import LoopState
from jobs.training.loop.watching import compared, tell_if_worse, tell_missing_metric
from jobs.training.worker_context import RayWorkerContext, RequestWatch
from jobs.training.worker_input import Job
from tests.support import tiny

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:17822")


class OneRank:
    rank = 0
    node = "n1"
    device = torch.device("cpu")


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Job:
    spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl")
    job = Job(spec, str(tmp_path / "run"), "prepared", "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.json").write_text("{}")
    return job


def failing(error: Exception) -> Any:
    def loop(job: Job, worker: Any) -> LoopState:
        raise error

    return loop


@pytest.mark.parametrize(
    ("error", "reason", "bad_input"),
    [
        (ValueError("too long"), f"rank 0 on {os.uname().nodename} failed: ValueError: too long", False),
        (DataError("label 7 is outside 0..1"), "label 7 is outside 0..1", True),
        (StorageError("cannot read /m: no such file"), "cannot read /m", True),
        (RunFailed("the loss of step 3 is nan"), "the loss of step 3 is nan", False),
        (
            RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
            f"rank 0 on {os.uname().nodename} failed: RuntimeError: mat1 and mat2 shapes",
            False,
        ),
    ],
)
def test_what_would_fail_again_is_returned_and_kept(job: Job, error: Exception, reason: str, bad_input: bool) -> None:
    assert worker.guarded(job, OneRank(), failing(error)) is None  # type: ignore[arg-type]
    failures = ending.failures_of(job.paths)
    assert len(failures) == 1 and failures[0]["reason"].startswith(reason)
    outcome = ending.outcome_of(job.paths, None, failures)
    assert outcome.status is Status.FAILED and outcome.bad_input == bad_input
    assert outcome.exit_code == (2 if bad_input else 1)


def test_a_rank_without_memory_and_one_with_a_broken_gpu_end_the_attempt_each_in_its_way(job: Job) -> None:
    worker.record_failure(job, 0, "n1", DataError("because of the other rank"), Fault.INPUT)
    worker.record_failure(job, 1, "n2", MemoryError(), Fault.MEMORY)
    full = ending.outcome_of(job.paths, None, ending.failures_of(job.paths))
    assert full.out_of_memory and not full.lost and not full.bad_input and full.exit_code == 1
    assert str(full.reason).startswith("rank 1 on ") and "ran out of host memory" in str(full.reason)
    worker.record_failure(job, 1, "n2", torch.AcceleratorError("CUDA error: uncorrectable ECC error"), Fault.MACHINE)
    broken = ending.outcome_of(job.paths, None, ending.failures_of(job.paths))
    assert broken.lost and broken.faulty_nodes == ("n2",) and broken.exit_code == 75


def test_an_outage_of_the_storage_ends_the_attempt_and_blames_no_node(job: Job) -> None:
    error = StorageOutage("cannot read s3://b/rows/0: ReadTimeoutError: read timed out")
    assert worker.guarded(job, OneRank(), failing(error)) is None  # type: ignore[arg-type]
    outcome = ending.outcome_of(job.paths, None, ending.failures_of(job.paths))
    assert outcome.lost and outcome.exit_code == 75 and outcome.faulty_nodes == () and outcome.reason == str(error)


@pytest.mark.parametrize("where", ["export", "metrics"])
def test_a_write_that_is_refused_after_training_leaves_a_run_to_resume(
    job: Job, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> LoopState:
        raise StorageError(f"cannot write {where}: OSError: [Errno 28] No space left on device")

    run = SimpleNamespace(plan=SimpleNamespace(total_steps=3), checkpoints=SimpleNamespace(finish=lambda: None))
    run.engine = SimpleNamespace(facts=dict)
    closed = full if where == "metrics" else lambda: None
    monkeypatch.setattr(loop, "Reporter", lambda paths, rank: SimpleNamespace(close=closed))
    monkeypatch.setattr(loop, "set_up", lambda *_: run)
    monkeypatch.setattr(loop, "restored", lambda run: LoopState(step=3))
    monkeypatch.setattr(loop, "most_memory_bytes", lambda worker: 1)
    monkeypatch.setattr(loop, "finish", full if where == "export" else lambda run, state: state)
    storage.write_bytes(commit_path(job.paths, 3), b"{}")
    assert worker.guarded(job, OneRank(), loop.train) is None  # type: ignore[arg-type]
    outcome = ending.outcome_of(job.paths, None, ending.failures_of(job.paths))
    assert outcome.exit_code == 1 and not outcome.bad_input
    assert "No space left on device. Free or repair the storage, then resume the run" in str(outcome.reason)
    assert how_to_go_on(job.paths, outcome) == f"fleetune run --resume {job.paths.root}"


@pytest.mark.parametrize(
    "error", [LOST, dist.DistBackendError("NCCL error: remote process exited"), ConnectionResetError("reset")]
)
def test_the_loss_of_a_peer_is_raised(job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PEER_GRACE_S", 0.0)
    with pytest.raises(type(error)):
        worker.guarded(job, OneRank(), failing(error))  # type: ignore[arg-type]
    assert not ending.failures_of(job.paths)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Default process group has not been initialized, please make sure to call init_process_group."),
        AssertionError("DeepSpeed backend not set, please initialize it using init_process_group()"),
        AttributeError("'NoneType' object has no attribute 'size'"),
    ],
)
def test_whatever_a_rank_hits_whose_gang_was_taken_apart_is_the_loss_of_a_peer(
    job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train closes the process group of a rank that is still at work once another one is lost."""

    def loop(job: Job, worker: Any) -> LoopState:
        dist.destroy_process_group()
        raise error

    monkeypatch.setattr(worker, "PEER_GRACE_S", 0.0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.raises(type(error)):
        worker.guarded(job, OneRank(), loop)  # type: ignore[arg-type]
    assert not ending.failures_of(job.paths)


def test_the_loss_of_a_peer_that_has_reported_is_not_raised(job: Job) -> None:
    worker.record_failure(job, 1, "n1", DataError("bad row"), Fault.INPUT)
    assert worker.guarded(job, OneRank(), failing(LOST)) is None  # type: ignore[arg-type]
    assert [failure["rank"] for failure in ending.failures_of(job.paths)] == [1]


def test_a_worker_that_does_not_see_the_run_says_that_storage_is_not_shared(job: Job) -> None:
    pathlib.Path(job.paths.spec).unlink()
    result = worker.guarded(job, OneRank(), failing(AssertionError("trained")))  # type: ignore[arg-type]
    outcome = ending.outcome_of(job.paths, result, ending.failures_of(job.paths))
    assert outcome.status is Status.FAILED and outcome.exit_code == 1
    assert "storage_path must be the same storage on every node" in str(outcome.reason)


def test_a_good_end_is_a_result_on_rank_0(job: Job) -> None:
    state = LoopState(
        step=3, loss=0.5, metrics={"eval_loss": 0.4}, evaluated_at=3, metrics_before={"eval_loss": 0.9},
        confusion=((1, 2), (0, 3)),
    )  # fmt: skip
    result = worker.guarded(job, OneRank(), lambda job, worker: state)  # type: ignore[arg-type]
    outcome = ending.outcome_of(job.paths, result, [])
    assert outcome.status is Status.SUCCEEDED and outcome.exit_code == 0 and outcome.step == 3
    assert outcome.metrics == {"eval_loss": 0.4, "loss": 0.5} and outcome.metrics_before == {"eval_loss": 0.9}
    assert outcome.evaluated_step == 3 and outcome.confusion == ((1, 2), (0, 3))
    assert outcome.exported_step is None and outcome.exported_metrics == {}
    best = Best(metric="eval_loss", greater_is_better=False, step=2, score=0.3, metrics={"eval_loss": 0.3})
    unknown = ending.outcome_of(job.paths, worker.result_of(dataclasses.replace(state, exported=best)), [])
    assert unknown.confusion is None, "that of the last step is of another model"
    best = best.model_copy(update={"confusion": ((2, 1), (1, 2))})
    earlier = ending.outcome_of(job.paths, worker.result_of(dataclasses.replace(state, exported=best)), [])
    assert earlier.exported_step == 2 and earlier.exported_metrics == {"eval_loss": 0.3}
    assert earlier.confusion == ((2, 1), (1, 2))
    assert outcome.model_path == job.paths.model


def test_workers_end_once_another_driver_has_taken_their_run(job: Job) -> None:
    ended = threading.Event()
    RequestWatch(job.paths, take_run(job.paths), 0, every_s=0.01, leave=ended.set)
    assert not ended.wait(0.2)
    take_run(job.paths)
    assert ended.wait(60.0)


def test_steps_after_a_rollback_are_marked_so_that_a_hang_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = list[tuple[Any, ...]]()
    worker = object.__new__(RayWorkerContext)
    monkeypatch.setattr(worker, "_pulse", SimpleNamespace(mark=lambda *given: marks.append(given)), raising=False)
    monkeypatch.setattr(worker_context, "plain_steps", lambda stream, start: iter([SimpleNamespace(step=start)]))
    for _ in worker.steps(None, 4, rewound=True):  # type: ignore[arg-type]
        assert marks == [(Doing.DATA, 4), (Doing.STEP, 5)]
    assert marks[-1] == (Doing.DATA,)


def test_a_group_notes_the_damaged_checkpoints_that_it_has_passed_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, worker = JobPaths(str(tmp_path)), object.__new__(RayWorkerContext)
    for step in (4, 8):
        storage.write_bytes(commit_path(paths, step), b"{}")
    given = {"_pulse": SimpleNamespace(mark=lambda *_: None), "_paths": paths, "rank": 0, "world_size": 2, "node": "n"}
    for name, value in given.items():
        monkeypatch.setattr(worker, name, value, raising=False)
    monkeypatch.setattr(worker_context, "ray_steps", lambda stream, start, node: iter([]))
    assert newest_step(paths) == 8 and not list(worker.steps(None, 4))  # type: ignore[arg-type]
    assert newest_step(paths) == 4, "the group has started there, although there is a newer one"


def test_each_kind_of_evaluation_is_marked_as_such() -> None:
    marks = list[Doing]()

    def evaluator() -> Any:
        return SimpleNamespace(split=[1, 2], rows_at_once=lambda module: 2, score=lambda *_: ({"eval_loss": 1.0}, None))

    run: Any = SimpleNamespace(
        evaluator=evaluator(), general=evaluator(), harness=None, engine=SimpleNamespace(module=None),
        reporter=SimpleNamespace(event=lambda *_, **__: None), worker=SimpleNamespace(mark=marks.append),
        job=SimpleNamespace(spec=SimpleNamespace(checkpoint=Checkpoint(), eval=Eval())),
    )  # fmt: skip
    loop.evaluated(run, LoopState(step=5))
    assert marks == [Doing.EVALUATION, Doing.OTHER, Doing.GENERAL, Doing.OTHER]


def test_an_exported_model_that_is_worse_than_the_base_is_told(tmp_path: pathlib.Path) -> None:
    def told(
        before: dict[str, float], after: dict[str, float], best: dict[str, float] | None = None, **rule: Any
    ) -> Any:
        said = list[str]()
        spec = tiny.spec_of(tmp_path, tmp_path / "model", tmp_path / "text.jsonl", **rule)
        run: Any = SimpleNamespace(
            job=SimpleNamespace(spec=spec), reporter=SimpleNamespace(event=lambda kind, text, **_: said.append(text))
        )
        exported = Best(metric="eval_loss", greater_is_better=False, step=3, score=1.0, metrics=best) if best else None
        tell_if_worse(run, LoopState(step=9, metrics=after, metrics_before=before, exported=exported))
        return said

    (said,) = told({"eval_loss": 0.331}, {"eval_loss": 19.55})
    assert said.startswith("eval_loss is worse than before training: 19.55 after 0.331. Lower train.learning_rate")
    assert not told({"eval_loss": 3.0}, {"eval_loss": 2.0}) and not told({}, {"eval_loss": 2.0})
    assert not told({"eval_loss": 3.0}, {"eval_loss": 9.0}, best={"eval_loss": 2.5})
    accuracy: dict[str, Any] = {"checkpoint__metric_for_best_model": "accuracy", "eval__metrics": ["loss", "accuracy"]}
    by_accuracy: dict[str, Any] = {**accuracy, "data__eval_fraction": 0.1, "classify": True}
    assert not told({"eval_accuracy": 0.5, "eval_loss": 0.7}, {"eval_accuracy": 0.8, "eval_loss": 0.9}, **by_accuracy)
    assert told({"eval_accuracy": 0.5}, {"eval_accuracy": 0.4}, **by_accuracy)
    (said,) = told({}, {"eval_accuracy": 0.37, "eval_majority_share": 0.63}, classify=True)
    assert "eval_accuracy (0.37) is not above the share of the most frequent class (0.63)" in said
    assert told({}, {"eval_accuracy": 0.63, "eval_majority_share": 0.63}, classify=True)
    assert not told({}, {"eval_accuracy": 0.64, "eval_majority_share": 0.63}, classify=True)
    assert not told({}, {"eval_accuracy": 1.0, "eval_majority_share": 1.0}, classify=True), "there is one class"


def test_a_best_metric_that_the_first_evaluation_does_not_report_is_told_once(tmp_path: pathlib.Path) -> None:
    def told(state: LoopState, metric: str, on_start: bool = True) -> list[str]:
        said = list[str]()
        spec = tiny.spec_of(
            tmp_path, tmp_path / "model", tmp_path / "text.jsonl", checkpoint__metric_for_best_model=metric,
            data__eval_fraction=0.1, eval={"metrics": ["loss", "mine:score"], "eval_on_start": on_start},
        )  # fmt: skip
        run: Any = SimpleNamespace(
            job=SimpleNamespace(spec=spec), reporter=SimpleNamespace(event=lambda kind, text, **_: said.append(text))
        )
        tell_missing_metric(run, state, {"eval_loss": 1.0, "eval_score": 2.0})
        return said

    (said,) = told(LoopState(), "scor")
    assert "reports no eval_scor; it reports eval_loss, eval_score; did you mean score?" in said
    assert not told(LoopState(), "score") and not told(LoopState(step=5), "scor")
    assert not told(LoopState(), "scor", on_start=False), "only general text was scored"
    assert told(LoopState(step=5), "scor", on_start=False)
    assert not told(LoopState(step=9, evaluated_at=5), "scor", on_start=False)


@pytest.mark.parametrize(
    ("epoch", "now", "may_act", "rises"),
    [(0.5, 5.0, True, True), (1.5, 5.0, True, False), (0.5, 3.1, True, False), (0.5, 5.0, False, False)],
)
def test_a_held_out_loss_far_above_the_base_s_in_the_first_epoch_sends_the_run_back(
    tmp_path: pathlib.Path, epoch: float, now: float, may_act: bool, rises: bool
) -> None:
    spec = tiny.spec_of(
        tmp_path, tmp_path / "model", tmp_path / "text.jsonl", data__eval_fraction=0.1, remedies__outlier_steps=may_act
    )
    run: Any = SimpleNamespace(job=SimpleNamespace(spec=spec), plan=SimpleNamespace(epoch_of_step=lambda step: epoch))
    state = compared(run, LoopState(step=9, metrics={"eval_loss": now}, metrics_before={"eval_loss": 3.0}))
    assert (rollback_of(state.history, 9, warmup_steps=2) is not None) == rises
    assert compared(run, LoopState(step=9, metrics={"eval_loss": now})).history.held_out_rise is None
