"""What is held against what before a run may go on."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cluster.errors import DataError, RunFailed, SpecError, StorageOutage
from jobs.data.order.digest_chain import chain_of, step_digest, to_hex
from jobs.data.order.row_order import ShuffledRows, StepPlan
from jobs.planning.replay import ReplayRaise
from jobs.remedies.early_stopping import stops_early
from jobs.run.checkpoints import Best, Commit, Part, committed_steps, read_commit, read_parts
from jobs.run.paths import JobPaths
from jobs.spec.evaluation import Checkpoint, Eval
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter, read_part
from jobs.storage.tensor_file import write_shard
from jobs.training.checkpoint.reader import check_same_model
from jobs.training.checkpoint.writer import DTYPES, Checkpointer, Writing, check_buffers
from jobs.training.loop import restoring
from jobs.training.loop.saving import (
    StepSignals,
    best_of,
    pack_signals,
    unpack_signals,
)
from jobs.training.loop.state import LoopState
from jobs.training.model.engine import Engine, UpdateGate
from tests.support import tiny

PLAN = StepPlan(ShuffledRows(100, 64, 7), 8, 30, 240)
DIGESTS = np.random.default_rng(0).integers(2**63, size=100, dtype=np.uint64)
CHAIN = to_hex(7)  # of steps that were logged without one


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class FakeRun(SimpleNamespace):
    """The parts of a run that are compared with a checkpoint."""

    def with_raises(self, raises: tuple[ReplayRaise, ...]) -> FakeRun:
        assert not raises
        return self


def run_of(root: pathlib.Path, precision: str = "fp32", **changes: Any) -> Any:
    return FakeRun(
        **{
            "worker": SimpleNamespace(rank=0), "job": SimpleNamespace(paths=JobPaths(str(root))), "plan": PLAN,
            "row_digests": DIGESTS, "prepared": SimpleNamespace(manifest=SimpleNamespace(fingerprint="f")),
            "engine": SimpleNamespace(precision=precision), "batching": SimpleNamespace(per_device=2),
            "base_digest": None, "device": "cpu", **changes,
        }
    )  # fmt: skip


def commit(**changes: Any) -> Commit:
    values = {
        "step": 20, "num_workers": 2, "parts": (), "shapes": {"w": (4, 2), "b": (4,)}, "bytes": 1,
        "optimizer_step": 20, "precision": "fp32", "loss": 1.0, "metrics": {}, "metrics_before": {},
        "chain": to_hex(chain_of(PLAN, DIGESTS, 20)), "data_fingerprint": "f",
        "per_device_train_batch_size": 1, **changes,
    }  # fmt: skip
    return Commit.model_validate(values)


def test_early_stopping_counts_anew_after_a_change_of_the_distance_between_evaluations() -> None:
    best = Best(metric="eval_loss", greater_is_better=False, step=10, score=1.0)
    saved = commit(best=best, eval_steps=5, evaluated_at=15)
    rule = Eval(eval_steps=1, early_stopping_patience=3)
    assert stops_early(rule, saved.best, 15)
    now = restoring.counted_anew(saved, 1)
    assert now.best is not None and now.best.step == 10 and not stops_early(rule, now.best, 22)
    assert stops_early(rule, now.best, 23)
    for same in (restoring.counted_anew(saved, 5), restoring.counted_anew(commit(best=best), 1)):
        assert same.best == best


def test_the_same_data_in_the_same_order_is_let_through(tmp_path: pathlib.Path) -> None:
    restoring.check_data(run_of(tmp_path), commit())


def test_one_sample_that_was_another_stops_the_run(tmp_path: pathlib.Path) -> None:
    """A row of the first epoch that was trained on before the checkpoint."""
    digests = DIGESTS.copy()
    digests[3] += np.uint64(1)
    with pytest.raises(RunFailed, match="trained on other samples, or in another order"):
        restoring.check_data(run_of(tmp_path, row_digests=digests), commit())


def test_another_seed_stops_the_run(tmp_path: pathlib.Path) -> None:
    other = dataclasses.replace(PLAN, order=ShuffledRows(100, 64, 8))
    with pytest.raises(RunFailed, match="in another order"):
        restoring.check_data(run_of(tmp_path, plan=other), commit())


def test_other_data_and_another_precision_are_the_users_to_mend(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="the data is not that of the run"):
        restoring.check_data(run_of(tmp_path), commit(data_fingerprint="g"))
    with pytest.raises(SpecError, match=r"Set train.bf16: false"):
        restoring.check_precision(run_of(tmp_path, "bf16"), commit())


def test_a_checkpoint_of_another_model_is_refused_with_the_parameters() -> None:
    check_same_model(commit(), {"w": (4, 2), "b": (4,)})
    with pytest.raises(DataError, match=r"2 parameters differ, first b \[4\] -> \[5\]; c missing -> \[1\]"):
        check_same_model(commit(), {"w": (4, 2), "b": (5,), "c": (1,)})


def test_an_adapter_goes_on_only_on_the_base_model_that_it_was_trained_on(tmp_path: pathlib.Path) -> None:
    spec = SimpleNamespace(model=SimpleNamespace(path="/m"))
    for now, saved in (("a", "a"), ("a", None), (None, None)):  # None: of an earlier release, or no adapter
        restoring.check_base(run_of(tmp_path, base_digest=now), commit(base_digest=saved))
    other = run_of(tmp_path, base_digest="b", job=SimpleNamespace(spec=spec))
    with pytest.raises(DataError, match=r"the weights in model\.path /m are not those on which the adapter"):
        restoring.check_base(other, commit(base_digest="a"))


def signals(loss: float, digest: int) -> StepSignals:
    return StepSignals(loss, stop=False, save=False, busy=False, failed=False, compare_speeds=False, digest=digest)


def planned_digest(step: int) -> int:
    rows = PLAN.rows_of_step(step)
    return step_digest(DIGESTS[rows], np.arange(len(rows)))


def test_a_step_on_other_rows_than_planned_stops_the_run(tmp_path: pathlib.Path) -> None:
    run, state = run_of(tmp_path), LoopState(step=5)
    restoring.check_step(run, state, signals(1.0, planned_digest(5)))
    with pytest.raises(RunFailed, match="step 6 had other rows"):
        restoring.check_step(run, state, signals(1.0, planned_digest(6)))


@pytest.mark.parametrize(("precision", "loss", "good"), [("fp32", 2.0005, True), ("fp32", 2.05, False),
                                                         ("bf16", 2.05, True), ("bf16", 2.5, False)])  # fmt: skip
def test_the_first_loss_after_a_resume_is_held_against_the_log(
    tmp_path: pathlib.Path, precision: str, loss: float, good: bool
) -> None:
    paths = JobPaths(str(tmp_path))
    journal = JournalWriter(paths.metrics)
    for step, logged in ((20, 3.0), (21, 9.0), (21, 2.0)):  # an attempt that went back has logged step 21 twice
        journal.append({"step": step, "loss": logged, "chain": to_hex(chain_of(PLAN, DIGESTS, step))})
    journal.close()
    run, chain = run_of(tmp_path, precision), commit().chain
    state = restoring.state_of(commit(), restoring.expected_loss(run, 21, chain))
    assert state.expected_loss == 2.0 and state.step == 20
    if good:
        restoring.check_step(run, state, signals(loss, planned_digest(20)))
        assert state.after(loss, planned_digest(20)).expected_loss is None
    else:
        with pytest.raises(RunFailed, match=r"the log of the run has 2\.000000"):
            restoring.check_step(run, state, signals(loss, planned_digest(20)))
    assert restoring.expected_loss(run, 22, chain) is None
    other = dataclasses.replace(PLAN, order=ShuffledRows(100, 64, 8))
    assert restoring.expected_loss(run_of(tmp_path, plan=other), 21, chain) is None, "the next step has other rows"


def test_a_loss_that_was_logged_with_another_micro_batch_is_not_compared(tmp_path: pathlib.Path) -> None:
    """Its dropout masks were others: a remedy for memory may have halved the micro-batch since the checkpoint."""
    journal = JournalWriter(JobPaths(str(tmp_path)).metrics)
    for step, micro_batch in ((21, 1), (22, 2)):
        journal.append({"step": step, "loss": 2.0, "micro_batch": micro_batch})
    journal.close()
    run = run_of(tmp_path)
    assert restoring.expected_loss(run, 21, CHAIN) is None and restoring.expected_loss(run, 22, CHAIN) == 2.0


def test_a_loss_that_was_logged_on_another_kind_of_device_is_not_compared(tmp_path: pathlib.Path) -> None:
    """Its dropout masks were others: a run may begin on GPUs and continue on CPUs, or in a gang with both."""
    journal = JournalWriter(JobPaths(str(tmp_path)).metrics)
    for step, device in ((21, {"device": "NVIDIA A"}), (22, {"device": "cpu"}), (23, {"device": None}), (24, {})):
        journal.append({"step": step, "loss": 2.0, **device})
    journal.close()
    on_cpus, on_gpus, on_both = (run_of(tmp_path, device=device) for device in ("cpu", "NVIDIA A", None))
    for run, compared in ((on_cpus, {22, 24}), (on_gpus, {21, 24}), (on_both, set())):  # 24: of an earlier release
        assert {step for step in range(21, 25) if restoring.expected_loss(run, step, CHAIN) == 2.0} == compared


@pytest.mark.parametrize(("setting", "value"), [("weight_decay", 0.0), ("betas", [0.9, 0.9]), ("step", 19)])
def test_settings_of_the_optimizer_that_are_not_the_specs_stop_the_run(
    tmp_path: pathlib.Path, setting: str, value: Any
) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path / "m", tmp_path / "d")
    groups = {
        "w": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "step": 20},
        "b": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "step": 20},
    }
    optimizer = SimpleNamespace(optimizer=SimpleNamespace(step=None))
    engine = Engine(None, spec, "fp32", None, UpdateGate(SimpleNamespace(optimizer=optimizer)))
    partitions = SimpleNamespace(shapes={"w": (4, 2), "b": (4,)}, groups=lambda: groups)
    engine.__dict__["partitions"] = partitions  # where a cached property keeps its value
    engine.check_groups(20)
    groups["w"][setting] = value
    with pytest.raises(RunFailed, match="for w"):
        engine.check_groups(20)


def told(rank: int = 1, digest: int = 0, since_save_s: float = 0.0, ranks: int = 2, **rule: Any) -> torch.Tensor:
    """What one rank says in a step's all-reduce."""
    orders = SimpleNamespace(stop=False, save=False)
    run: Any = SimpleNamespace(
        worker=SimpleNamespace(rank=rank, requests=lambda: orders, world_size=ranks, device=torch.device("cpu")),
        job=SimpleNamespace(spec=SimpleNamespace(checkpoint=Checkpoint(**rule))),
        checkpoints=SimpleNamespace(last_began_at=time.monotonic() - since_save_s, busy=False, failed=False),
        speeds=SimpleNamespace(is_due=False),
    )
    return pack_signals(run, torch.zeros((), dtype=torch.float64), digest)


def test_a_sum_of_digests_survives_the_all_reduce() -> None:
    parts = [2**64 - 1, 2**63 + 12345, 987654321987654321, 2**32 - 1]
    said = torch.stack([told(digest=part) for part in parts]).sum(0)
    assert unpack_signals(said, 1).digest == sum(parts) % 2**64


def test_the_largest_peak_of_memory_of_all_ranks_is_known_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for rank, peak in enumerate((3, 2**41 + 1, 5)):
        monkeypatch.setattr("jobs.training.loop.saving.peak_memory_bytes", lambda device, peak=peak: peak)
        said.append(told(rank, ranks=3))
    assert unpack_signals(torch.stack(said).sum(0), 1).peak_bytes == 2**41 + 1


def test_a_checkpoint_is_due_by_the_clock_of_rank_0() -> None:
    def due(rank: int, since_save_s: float, minutes: float | None) -> bool:
        return unpack_signals(told(rank, since_save_s=since_save_s, save_minutes=minutes), 1).save

    assert due(0, 61, 1) and due(0, 1801, 30)
    assert not due(0, 1740, 30) and not due(0, 1e9, None)
    assert not due(1, 61, 1), "another rank's clock might differ"


def test_buffers_of_every_kind_come_back(tmp_path: pathlib.Path) -> None:
    from jobs.training.checkpoint.reader import read_buffers

    buffers = {
        "mean": torch.randn(3, 2),
        "count": torch.tensor(7),
        "half": torch.randn(5).bfloat16(),
        "mask": torch.tensor([True, False]),
        **{f"as {dtype}": torch.arange(6).reshape(3, 2).to(dtype) for dtype in DTYPES},
    }
    check_buffers(buffers)
    partitions: Any = SimpleNamespace(pieces=())
    worker: Any = SimpleNamespace(rank=0, world_size=1)
    reporter: Any = SimpleNamespace(event=lambda *told, **data: None)
    host: Any = SimpleNamespace()
    checkpoints = Checkpointer(JobPaths(str(tmp_path)), partitions, host, worker, 1, reporter)
    tensors, described = checkpoints._part(buffers)
    part = Part(file=write_shard(str(tmp_path), "a.safetensors", tensors), **described)
    back = read_buffers(str(tmp_path), part, buffers)
    stored = load_file(tmp_path / "a.safetensors")
    assert set(back) == set(buffers) and set(stored) == {f"buffer:{name}" for name in buffers}
    for name, buffer in buffers.items():
        for one in (back[name], stored[f"buffer:{name}"]):
            assert (one.dtype, one.shape) == (buffer.dtype, buffer.shape), name
            assert torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, buffer))), name


def test_a_buffer_that_no_checkpoint_can_hold_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"^the buffer rope\.freqs of the model is complex128, and a checkpoint holds "):
        check_buffers({"mean": torch.zeros(2), "rope.freqs": torch.zeros(2, dtype=torch.complex128)})


def test_an_index_that_was_stored_despite_an_error_counts_and_dead_parts_go(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may have read the index already, and committed."""
    paths, write = JobPaths(str(tmp_path)), storage.write_bytes

    def stored_but_failed(path: str, content: bytes) -> None:
        write(path, content)
        if path.endswith(".json") and "rank-" in path:
            raise StorageOutage("the answer has not come")

    worker: Any = SimpleNamespace(rank=0, world_size=1)
    reporter: Any = SimpleNamespace(event=lambda *told, **data: None, flush=lambda: None)
    checkpoints = Checkpointer(paths, SimpleNamespace(pieces=()), SimpleNamespace(), worker, 1, reporter)  # type: ignore[arg-type]
    dead = pathlib.Path(paths.checkpoint(3), "rank-00000-of-00001.0badbeef.safetensors")
    dead.parent.mkdir(parents=True)
    dead.write_bytes(b"of a group that was killed")
    tensors, described = checkpoints._part({"mean": torch.ones(2)})
    monkeypatch.setattr(storage, "write_bytes", stored_but_failed)
    writing = Writing(3)
    checkpoints._write(
        writing, tensors, described, commit().model_dump(exclude={"step", "num_workers", "parts", "bytes"})
    )
    assert writing.error is None and committed_steps(paths) == [3] and not dead.exists()
    assert len(read_parts(paths, read_commit(paths, 3))) == 1


def test_the_log_is_read_from_its_end_only_as_far_as_needed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.run import record

    paths = JobPaths(str(tmp_path))
    for first in range(1, 100, 10):
        journal = JournalWriter(paths.metrics)
        for step in range(first, first + 10):
            journal.append({"step": step, "loss": float(step)})
        journal.close()
    read: list[str] = []

    def counting(folder: str, name: str) -> Any:
        read.append(name)
        return read_part(folder, name)

    monkeypatch.setattr(record, "read_part", counting)
    assert record.logged_loss(paths, 101, 1, CHAIN, "cpu") is None and len(read) == 1
    assert record.logged_loss(paths, 95, 1, CHAIN, "cpu") == 95.0 and len(read) == 2
    assert record.logged_loss(paths, 75, 1, CHAIN, "cpu") == 75.0 and len(read) == 5


def test_a_metric_that_is_no_number_does_not_cost_the_checkpoint() -> None:
    kept = commit(metrics={"eval_own": float("nan"), "eval_loss": float("inf")})
    back = Commit.model_validate_json(kept.model_dump_json())
    assert np.isnan(back.metrics["eval_own"]) and back.metrics["eval_loss"] == float("inf")
    state = LoopState(step=3, metrics={"eval_loss": float("nan")}, evaluated_at=3)
    assert best_of(Checkpoint(metric_for_best_model="loss"), state) is None


def test_a_loss_from_before_a_rollback_is_not_expected(tmp_path: pathlib.Path) -> None:
    """The run went back to step 19 and has a checkpoint of its new step 20, and the log still has the old step 21."""
    journal = JournalWriter(JobPaths(str(tmp_path)).metrics)
    for step in (19, 20, 21, 22, 20):
        journal.append({"step": step, "loss": float(step)})
    journal.close()
    assert restoring.expected_loss(run_of(tmp_path), 21, CHAIN) is None
    assert restoring.expected_loss(run_of(tmp_path), 20, CHAIN) == 20.0
