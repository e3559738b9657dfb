"""What an exception says of its cause: the input, the program, the memory, the machine, or a peer."""

from __future__ import annotations

import json
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.errors import DataError, Diverged, MachinesFailed, RunFailed
from cluster.local.memory import resident_bytes
from jobs.run.paths import JobPaths
from jobs.search.driver.tune_failure import error_of_tune
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.training.faults import Fault, fault_of, first_line, reason_of
from jobs.training.on_ray import fit
from jobs.training.on_ray.crash import Crash, How, crashes_of, examined
from jobs.training.on_ray.fit import Healing
from jobs.training.vitals import Vitals, dead_ranks
from jobs.training.worker_input import Job
from tests.support import tiny

CUDA_ADVICE = (
    "\nSearch for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api for more information.\nCUDA kernel errors "
    "might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)
GPU_FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is "
    "free. Including non-PyTorch memory, this process has 77.60 GiB in use. If reserved but unallocated memory is "
    "large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def cuda(text: str, name: str) -> Exception:
    return torch.AcceleratorError(f"CUDA error: {text}{CUDA_ADVICE.format(name=name)}")


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DataError("label 7 is outside 0..1"), Fault.INPUT),
        (RunFailed("the metric of step 3 is wrong"), Fault.PROGRAM),
        (Diverged("the loss of step 3 is nan"), Fault.DIVERGENCE),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Fault.PROGRAM),
        (torch.OutOfMemoryError(GPU_FULL), Fault.MEMORY),
        (MemoryError(), Fault.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), Fault.MEMORY),
        (cuda("out of memory", "cudaErrorMemoryAllocation"), Fault.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Fault.MEMORY),
        (cuda("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable"), Fault.MACHINE),
        (cuda("unspecified launch failure", "cudaErrorLaunchFailure"), Fault.MACHINE),
        (cuda("CUDA-capable device(s) is/are busy or unavailable", "cudaErrorDevicesUnavailable"), Fault.MACHINE),
        (cuda("device-side assert triggered", "cudaErrorAssert"), Fault.PROGRAM),
        (cuda("an illegal memory access was encountered", "cudaErrorIllegalAddress"), Fault.PROGRAM),
        (cuda("no kernel image is available for execution on the device", "cudaErrorNoKernelImageForDevice"),
         Fault.PROGRAM),
        (dist.DistBackendError("NCCL error in: NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO)"),
         Fault.MACHINE),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), Fault.PEER),
        (dist.DistBackendError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(Seq"), Fault.PEER),
        (dist.DistNetworkError("The client socket has timed out"), Fault.PEER),
        (ConnectionResetError("reset"), Fault.PEER),
        (RuntimeError("[gloo/tcp/pair.cc:547] Read error [192.0.2.2]:17822: Connection timed out"), Fault.PEER),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Application timeout caused pair closure"), Fault.PEER),
        (RuntimeError("[gloo/transport/tcp/pair.cc:610] connect [192.0.2.2]:17822: No route to host"), Fault.PEER),
    ],
)  # fmt: skip
def test_the_fault_of_an_error(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def job_of(spec: Spec, **more: Any) -> Job:
    return Job(spec, "run", "prepared", "model", **more)


def test_a_full_gpu_is_told_in_one_line_with_its_numbers(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t", resources__gpus_per_worker=1)
    said = reason_of(torch.OutOfMemoryError(GPU_FULL), Fault.MEMORY, 3, "gpu-7", job_of(spec))
    assert said.startswith(
        "rank 3 on gpu-7 ran out of GPU memory: 2.00 GiB more were asked for, and 1.50 GiB of 79.11 GiB were free. "
    )
    assert "train.gradient_checkpointing: true" in said and "\n" not in said and "expandable" not in said


def test_the_advice_leaves_out_what_the_model_does_not_support(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t")
    job = job_of(spec, supports_checkpointing=False)
    assert "gradient_checkpointing" not in reason_of(torch.OutOfMemoryError(GPU_FULL), Fault.MEMORY, 3, "gpu-7", job)


def test_an_error_of_gloo_is_told_without_its_place_in_the_source() -> None:
    error = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9")
    assert first_line(error) == "RuntimeError: Connection closed by peer [::1]:9"


def test_an_ordinary_exception_names_its_rank(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t")
    said = reason_of(KeyError("logits"), Fault.PROGRAM, 3, "gpu-7", job_of(spec))
    assert said == "rank 3 on gpu-7 failed: KeyError: 'logits'"


def test_an_assertion_on_the_gpu_is_told_in_one_line_with_its_usual_cause(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t")
    said = reason_of(cuda("device-side assert triggered", "cudaErrorAssert"), Fault.PROGRAM, 3, "gpu-7", job_of(spec))
    assert said.startswith("rank 3 on gpu-7 failed: AcceleratorError: CUDA error: device-side assert triggered. ")
    assert "a token or a label" in said and "\n" not in said and "docs.nvidia.com" not in said


def test_a_broken_gpu_is_told_in_one_line_with_its_node(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t")
    error = cuda("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable")
    said = reason_of(error, Fault.MACHINE, 3, "gpu-7", job_of(spec))
    assert said.startswith("the hardware of rank 3 on gpu-7 failed: AcceleratorError: CUDA error: uncorrectable ECC")
    assert "\n" not in said and "docs.nvidia.com" not in said


WORKER = (
    "A worker health check failed.\nWorker info: Worker(\n  actor=Actor(RayTrainWorker, 1f8a04),\n"
    "  metadata=ActorMetadata(\n    hostname='gpu-7',\n    node_id='c61f81',\n    node_ip='192.0.2.2',\n"
    "    pid={pid},\n  ),\n  distributed_context=DistributedContext(world_rank={rank}, world_size=2, local_rank=0),\n)"
)
FULL = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: c61f81) was "
    "22.96GB used / 23.54GB limit (0.975)\nRay killed 2 worker(s) based on the killing policy\nConsidered workers: [\n"
    "Selected to kill: (Actor(ab2c): task name=PreemptionWatcher.__init__, pid=40, actual memory used=9.10GB\n"
    "Selected to kill: (Actor(3c77): job ID=01, task name=RayTrainWorker.__init__, required resources={}, pid=41, "
    "actual memory used=0.86GB, worker ID=e2)\n"
    "Selected to kill: (Actor(1f8a): job ID=01, task name=RayTrainWorker.__init__, required resources={}, pid=42, "
    "actual memory used=10.63GB, worker ID=03)]\n"
    "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest"
)


def failed_check(rank: int, pid: int, cause: Exception) -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    error: Exception = WorkerHealthCheckFailedError(WORKER.format(rank=rank, pid=pid), cause)
    return error


def test_workers_that_ray_has_killed_for_memory_are_told_in_one_line() -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError

    error = WorkerGroupError(FULL, {1: failed_check(1, 42, OutOfMemoryError(FULL))})
    (crash,) = crashes_of(error)
    assert (crash.how, crash.rank, crash.node) == (How.MEMORY, 1, "c61f81")
    assert str(crash) == (
        "rank 1 on node gpu-7 was killed for memory by Ray when the node had 23.0 of 23.5 GiB in use; "
        "it held 10.6 GiB itself"
    )


def test_where_ray_kills_its_controller_too_the_largest_worker_is_named() -> None:
    from ray.exceptions import OutOfMemoryError

    (crash,) = crashes_of(OutOfMemoryError(FULL))
    assert (crash.how, crash.pid, crash.node) == (How.MEMORY, 42, "c61f81")
    assert str(crash).startswith(
        "a process of this run (pid 42) on node 192.0.2.2 was killed for memory by Ray when the node had"
    )


def test_where_ray_kills_tunes_actor_too_the_sweep_ends_with_one_line_and_can_be_resumed(
    tmp_path: pathlib.Path,
) -> None:
    from ray.exceptions import OutOfMemoryError

    error = RuntimeError(f"Caught unexpected exception: {FULL}")
    error.__cause__ = OutOfMemoryError(FULL)
    spec = tiny.spec_of(tmp_path, tmp_path, tmp_path / "t")
    found = error_of_tune(error, spec)
    assert isinstance(found, MachinesFailed)
    said = "Ray Tune ended because a process of this run (pid 42) on node 192.0.2.2 was killed for memory by Ray when "
    assert str(found).startswith(said) and "data.seq_len" in str(found) and "\n" not in str(found)
    assert "Ray Tune failed: RuntimeError: odd" in str(error_of_tune(RuntimeError("odd"), spec))


def test_other_ends_of_workers_are_told_apart() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    group = WorkerGroupError(
        "", {0: RuntimeError("Connection closed by peer"), 1: failed_check(1, 7, ActorDiedError())}
    )
    left, died = crashes_of(group)
    assert (left.how, died.how) == (How.LEFT, How.DIED)
    assert str(died) == "rank 1 on node gpu-7 was killed or crashed"
    (early,) = crashes_of(ControllerError(ActorDiedError()))
    assert early.how is How.DIED
    (waiting,) = crashes_of(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert waiting.how is How.NO_ROOM
    assert crashes_of(ControllerError(ValueError("a bug"))) == []
    unreachable = RayTaskError(
        "join", "a traceback", RuntimeError("connect to 10.0.0.1 timed out")
    ).as_instanceof_cause()
    (apart,) = crashes_of(ControllerError(unreachable))
    assert apart.how is How.DIED and str(apart).endswith(
        "could not join the others (RuntimeError: connect to 10.0.0.1 timed out)"
    )


def test_a_killed_worker_leaves_its_rank_and_what_it_held(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    crash = Crash(How.DIED, "was killed or crashed", pid=1, host="gpu-7")
    with Vitals("key", 3):
        left = dead_ranks("key")
        assert [vital.rank for vital in left.vitals] == [3]
        vital = left.vitals[0]
        assert vital.resident_bytes == pytest.approx(resident_bytes(), rel=0.5)
        assert examined(Crash(How.DIED, "was killed", pid=vital.pid), left).how is How.DIED
        for_memory = left.__class__(
            (vital.__class__(3, 1, 3 << 30, (0, 4)),), left.memory.__class__(8 << 30, True, (1, 4))
        )
        assert str(examined(crash, for_memory)) == (
            "rank 3 on node gpu-7 was killed for memory by the kernel: it held 3.0 GiB a few seconds before; the limit "
            "of its container is 8.0 GiB"
        )
    assert dead_ranks("other").vitals == ()
    assert not list(tmp_path.iterdir())


def test_a_newer_checkpoint_restores_the_budget_of_losses() -> None:
    saved = 0
    healing = Healing(lambda: saved, most=2)
    assert [healing.may_go_on() for _ in range(2)] == [True, True]
    saved = 10
    assert [healing.may_go_on() for _ in range(3)] == [True, True, False]


def test_a_reported_failure_counts_although_the_process_died_before_it_ended(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL ends a process some seconds after an error that its rank has reported."""
    from ray.exceptions import ActorDiedError

    paths = JobPaths(str(tmp_path / "run"))
    job: Any = SimpleNamespace(paths=paths, run_root=paths.root)

    class Trainer:
        def fit(self) -> Any:
            raise ActorDiedError

    def died() -> Any:
        return fit.fit(job, None, True, lambda: None)

    monkeypatch.setattr(fit, "_trainer", lambda *_: Trainer())
    with pytest.raises(ActorDiedError):
        died()
    storage.write_bytes(paths.failure(1), json.dumps({"fault": Fault.PROGRAM, "rank": 1, "reason": "r"}).encode())
    assert died() is None
