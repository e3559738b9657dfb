"""Runs the loop in a worker process, and decides what happens to its errors.

An error that the same input would raise again is *returned*, because Ray Train retries whatever is raised. An error
that the loss of a peer causes is raised, so that a new worker group is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable

import torch.distributed as dist

from cluster.imports import quick_imports
from jobs.run.paths import JobPaths, rank_name
from jobs.storage import files as storage
from jobs.storage.journal import Record
from jobs.training.collectives import of_all_ranks
from jobs.training.faults import Fault, fault_of, is_in_update, is_of_host_memory, reason_of, shortage_of
from jobs.training.loop.state import LoopState
from jobs.training.model.engine import import_deepspeed
from jobs.training.model.load import import_model_classes
from jobs.training.worker_context import WorkerContext
from jobs.training.worker_input import Job

PEER_GRACE_S = 15.0  # wait for a peer's report after an error that a lost peer may have caused


def guarded(job: Job, worker: WorkerContext, loop: Callable[[Job, WorkerContext], LoopState]) -> Record | None:
    """Run the loop. Returns rank 0's result (see `result_of`); None on other ranks and after a failure."""
    blind = hosts_that_do_not_see(job.paths, job.spec.working_dir)
    if blind is not None:  # returned, because the driver might not see a failure file that this worker writes
        return {"failure": blind} if worker.rank == 0 else None
    # DeepSpeed's own calls cause these warnings, at every step; a user cannot act on them.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    joined = dist.is_initialized()
    try:
        with quick_imports():
            import_deepspeed(worker.device)
            import_model_classes()
        state = loop(job, worker)
    except Exception as error:
        traceback.print_exc()
        fault = fault_of(error, taken_apart=joined and not dist.is_initialized())
        if fault is Fault.PEER:
            if not a_peer_reported(job.paths):
                raise
            return None
        record_failure(job, worker.rank, worker.node, error, fault)
        leave_gang()
        return None
    return result_of(state) if worker.rank == 0 else None


def result_of(state: LoopState) -> Record:
    """Return fields of `Outcome`, and `stopped`, `kept` and `facts`: what `jobs.training.ending.outcome_of` reads."""
    return {
        "step": state.step,
        "stopped": state.stopped,
        "kept": state.kept,
        "metrics": {**state.metrics, **({} if state.loss is None else {"loss": state.loss})},
        "evaluated_step": state.evaluated_at,
        "metrics_before": state.metrics_before,
        "exported_step": None if state.exported is None else state.exported.step,
        "exported_metrics": {} if state.exported is None else state.exported.metrics,
        "confusion": state.confusion if state.exported is None else state.exported.confusion,
        "facts": state.facts,
    }


def a_peer_reported(paths: JobPaths) -> bool:
    """Whether a rank has reported a failure. A rank writes its report before it closes its connections."""
    deadline = time.monotonic() + PEER_GRACE_S
    while time.monotonic() < deadline:
        if storage.list_names(paths.failures):
            return True
        time.sleep(0.5)
    return False


def record_failure(job: Job, rank: int, node: str, error: Exception, fault: Fault) -> None:
    """Write a failure for the driver and the other ranks."""
    host = os.uname().nodename
    content = {
        "rank": rank,
        "node": node,
        "fault": fault,
        "reason": reason_of(error, fault, rank, host, job),
        "log": job.paths.log(rank_name(rank)),
        "at": time.time(),
    }
    if fault is Fault.MEMORY:
        content |= {"cause": shortage_of(error, rank, host), "of_host": is_of_host_memory(error)}
        content["in_update"] = is_in_update(error)
    storage.write_bytes(job.paths.failure(rank), json.dumps(content).encode())


def leave_gang() -> None:
    """Close this rank's connections, so that peers that wait for it in a collective notice at once.

    With NCCL the connections stay open, because closing waits for kernels that wait for those peers. There the driver,
    or the watch of a torchrun process, sees the failure and ends the peers.
    """
    if dist.is_initialized() and dist.get_backend() != "nccl":
        with contextlib.suppress(Exception):  # the failure is recorded; nothing here may hide it
            dist.destroy_process_group()


def hosts_that_do_not_see(paths: JobPaths, working_dir: str | None = None) -> str | None:
    """Describe hosts that do not see the run's files or `working_dir`; None if all do. Every rank must call it."""
    lacks_dir = working_dir is not None and not os.path.isdir(working_dir)
    mine = (os.uname().nodename, storage.exists(paths.spec), lacks_dir)
    seen = of_all_ranks(mine) if dist.is_initialized() else [mine]
    blind = sorted({host for host, sees, _ in seen if not sees})
    without = sorted({host for host, _, lacks in seen if lacks})
    if blind:
        return (
            f"host {', '.join(blind)} does not see {paths.spec}, which the driver wrote. storage_path must be the "
            "same storage on every node (a shared file system, or a URL such as s3://...)"
        )
    if without:
        return f"host {', '.join(without)} has no directory {working_dir}: working_dir must be seen by every node"
    return None
