"""Runs one worker group on Ray, from its start to its end, and limits how often a lost one is replaced.

Ray Train restarts nothing here. `ray_driver` decides whether to start another group, because it knows the checkpoints
and the nodes that a queue has assigned.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import StorageError
from cluster.ray.connection import NODE_LABEL
from cluster.settings import set_default
from cluster.wakeup import Wakeup
from jobs.planning import gang_of
from jobs.storage import files as storage
from jobs.storage.journal import Record
from jobs.training.ending import failures_of
from jobs.training.faults import Fault
from jobs.training.on_ray.worker import ray_worker
from jobs.training.worker_input import Job

_FEW_WORKERS = 64  # up to this many, the health of workers is checked more often
_POLL_S = 0.5
# Seconds from free slots to running workers. Ray's 60 s are too short if a node imports torch from a slow file system.
_START_TIMEOUT_S = 300
# A rank that has failed leaves the others in a collective that nothing can interrupt. They get this many seconds to
# end by themselves; then the driver leaves, and Ray ends its processes.
_FAILURE_GRACE_S = 10.0
_MEMORY_GRACE_S = 2.0  # the same if a rank ran out of memory, which explains any error that the others would report
_OF_ARROW = ("file", "s3", "gs", "gcs", "abfs", "abfss")  # protocols that Ray Train opens by itself
_LEAVES_WITHIN_S = 2.0  # for Ray Train's thread to end the workers, before the driver shuts Ray down

# Workers are replaced after this many losses without a newer checkpoint. After one more, the queue tries other nodes.
MOST_LOSSES = 3


def fit(
    job: Job,
    places: Sequence[str] | None,
    alone: bool,
    look: Callable[[], None],
    wakeup: Wakeup | None = None,
    first: int | None = None,
) -> Record | None:
    """Train on the connected cluster. Returns rank 0's result; None if a worker reported a failure.

    `DriverTrainer.fit` runs in a thread, because on the main thread it would handle Ctrl-C itself and save nothing.

    Args:
        places: the node of each worker; None lets Ray choose.
        alone: Ray ends with this process.
        look: called twice a second. An exception from it ends the wait, not the workers.
        wakeup: when it is set, `look` is called at once.
        first: see `ray_worker`.

    Raises:
        Exception: any exception of `DriverTrainer.fit`.
    """
    done: dict[str, Any] = {}
    wakeup = wakeup or Wakeup()
    left = threading.Event()
    name = f"ray-{secrets.token_hex(4)}"

    def run() -> None:
        try:
            done["result"] = _trainer(job, name, left, places, alone, first).fit().return_value
        except BaseException as error:
            done["error"] = error
        with contextlib.suppress(StorageError):  # Ray Train's own state, which is never read again
            storage.remove_dir(storage.join(job.run_root, name))
        wakeup.set()

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    try:
        if not _has_ended(thread, job, look, wakeup):
            return None
    finally:
        left.set()
        thread.join(_LEAVES_WITHIN_S)
    look()
    if "error" in done:
        with contextlib.suppress(StorageError):
            if failures_of(job.paths):  # the loss of its process, or of others, follows from it
                return None
        raise done["error"]
    result: Record | None = done["result"]
    return result


def _has_ended(thread: threading.Thread, job: Job, look: Callable[[], None], wakeup: Wakeup) -> bool:
    """Wait for the thread to end. False: a rank has failed, and the others do not end in the time that they get."""
    ends_at: float | None = None
    while thread.is_alive():
        wakeup.wait(_POLL_S)
        look()
        if ends_at is None:
            with contextlib.suppress(StorageError):  # the next look asks again
                grace_s = _grace_s(failures_of(job.paths))
                ends_at = None if grace_s is None else time.monotonic() + grace_s
        if ends_at is not None and time.monotonic() > ends_at:
            return False
    return True


def _grace_s(failures: Sequence[Record]) -> float | None:
    """Return how long the ranks that have not failed may take to end; None if no rank has failed."""
    if not failures:
        return None
    return _MEMORY_GRACE_S if failures[0]["fault"] == Fault.MEMORY else _FAILURE_GRACE_S


def _trainer(
    job: Job, name: str, left: threading.Event, places: Sequence[str] | None, alone: bool, first: int | None
) -> Any:
    """Make the trainer of a job, with all settings of Ray Train.

    Args:
        name: Ray keeps state under this name and would resume from state that it finds, so it must be new.
        left: see `DriverTrainer`.
        places, alone, first: see `fit`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from jobs.training.on_ray.controller import DriverTrainer
    from jobs.training.on_ray.process_group import ProcessGroup

    resources = job.spec.resources
    if resources.num_workers <= _FEW_WORKERS:
        set_default("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # Ray's 2 s would delay every end that much
    set_default("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_TIMEOUT_S))
    # The controller runs in this process, whose logging it would change.
    set_default("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    each = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        each["GPU"] = float(resources.gpus_per_worker)
    return DriverTrainer(
        ray_worker,
        left=left,
        alone=alone,
        train_loop_config={"job": job, "first": first},
        backend_config=ProcessGroup("nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker=each,
            accelerator_type=gang_of(job.spec).accelerator_type,
            label_selector=[{NODE_LABEL: place} for place in places] if places is not None else None,
        ),
        run_config=RunConfig(
            name=name,
            **_storage_of(job.run_root),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            # Ray Train runs the loop in a thread. glibc would give this thread a separate arena, which
            # `keep_freed_memory` does not reach: half a million page faults a step.
            worker_runtime_env=None if resources.gpus_per_worker else {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        ),
    )


def _storage_of(root: str) -> dict[str, Any]:
    """Return how Ray Train reaches the run's directory. It uses Arrow, which knows fewer protocols than fsspec."""
    if not storage.is_url(root) or root.partition("://")[0] in _OF_ARROW:
        return {"storage_path": root}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, inner = storage.filesystem(root)
    return {"storage_path": inner, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


class Healing:
    """Counts how often this driver has lost workers."""

    def __init__(self, newest: Callable[[], int], most: int = MOST_LOSSES) -> None:
        """`newest` returns the step of the newest checkpoint, or 0."""
        self._newest, self._most = newest, most
        self._step, self.losses = newest(), 0

    def may_go_on(self) -> bool:
        """Count one more loss. Returns whether the workers may be started again."""
        step = self._newest()
        if step > self._step:
            self.losses = 0
        self._step = step  # it may be lower: a run that goes back removes later checkpoints
        self.losses += 1
        return self.losses <= self._most
