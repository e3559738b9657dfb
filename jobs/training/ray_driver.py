"""One run on a Ray cluster, seen from its driver: prepare, check, fit, watch."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.inventory import Inventory
from cluster.ray_backend import (
    NODE_LABEL,
    check_alive,
    connected,
    free_now,
    held_places,
    keep_data_actor_here,
    leaving_nodes,
    snapshot,
)
from cluster.settings import set_default
from cluster.workplace import Workplace
from jobs import storage
from jobs.assignment import Assignment
from jobs.data.stream import ray_iterators
from jobs.errors import CapacityError, MachinesFailed, RunFailed, StorageError
from jobs.journal import Record
from jobs.outcome import Outcome
from jobs.paths import JobPaths
from jobs.planning import gang_of, most_workers, with_workers, worker_numbers
from jobs.progress import Progress
from jobs.provenance import run_facts
from jobs.record import write_manifest
from jobs.signals import StopSignals
from jobs.spec import Spec
from jobs.training.draining import Draining
from jobs.training.gang import count_attempts, read_attempt, take_run
from jobs.training.job import Job
from jobs.training.ready import ready_data
from jobs.training.worker import failures_of, outcome_of, ray_worker
from jobs.watch import Announcer, Watch

# A dead worker process is started again this often; what the same input would raise again never is (see `worker`).
MAX_WORKER_FAILURES = 3
_FEW_WORKERS = 64
_POLL_S = 0.5
_LOOK_AT_NODES_S = 5.0
# A rank that has failed leaves the others in a collective that nothing can interrupt. They get this long to end by
# themselves; then the driver leaves, and Ray ends what belongs to it.
_FAILURE_GRACE_S = 10.0


def drive_on_ray(
    spec: Spec,
    paths: JobPaths,
    address: str | None,
    announce: Announcer,
    progress: Progress,
    assignment: Assignment | None = None,
) -> Outcome:
    """Run the job to its outcome.

    Raises:
        InputError: the data, or the gang, cannot be.
        RunFailed: the workers died more often than is forgiven.
        MachinesFailed: a node of the assignment is gone, or its cluster.
        Interrupted: a second Ctrl-C, or one before training began.
    """
    given = assignment or Assignment()
    if given.num_workers is not None:
        spec = with_workers(spec, given.num_workers)
    facts, driver = run_facts(), take_run(paths)
    with StopSignals(paths, announce, patient=assignment is not None) as signals:
        announce("phase", "connecting to Ray", phase="connect")
        with _connected(spec, address, assignment) as inventory:
            signals.hold()
            facts |= {"nodes": len(inventory.nodes), "cluster_cpus": inventory.cpus, "cluster_gpus": inventory.gpus}
            prepared = ready_data(spec, "ray", announce)
            write_manifest(paths, facts | {"data_fingerprint": prepared.manifest.fingerprint})
            if spec.resources.min_workers is not None:  # not before: preparing may have taken hours
                spec = with_workers(spec, most_workers(spec, free_now()))
            announce("phase", f"starting {gang_of(spec)}", phase="workers")
            if given.places is not None:  # Ray Train would wait for ever for a node that is gone, or has no room
                with held_places(gang_of(spec), given.places, lambda: None):
                    pass
            keep_data_actor_here()
            signals.graceful = True
            job = Job(spec, paths.root, prepared.root, spec.model.path, count_attempts(paths), driver)
            draining = Draining(paths, announce, given.places)
            result = fit(job, signals, Watch(paths, progress), draining, given.places)
    outcome = outcome_of(paths, result, failures_of(paths))
    write_manifest(paths, facts | {"data_fingerprint": prepared.manifest.fingerprint} | (result or {}).get("facts", {}))
    return outcome


@contextlib.contextmanager
def _connected(spec: Spec, address: str | None, assignment: Assignment | None) -> Iterator[Inventory]:
    """A queue has seen that the gang fits: where it does not any more, the machines have changed."""
    workplace = Workplace(spec.working_dir, assignment.variables if assignment else {})
    try:
        with connected(address, gang_of(with_workers(spec, worker_numbers(spec)[0])), workplace) as inventory:
            yield inventory
    except CapacityError as error:
        if assignment is None or assignment.places is None:
            raise
        raise MachinesFailed(f"the nodes of this attempt cannot be had any more: {error}") from error


def fit(
    job: Job, signals: StopSignals, watch: Watch, draining: Draining, places: Sequence[str] | None = None
) -> Record | None:
    """Train on the connected cluster; what rank 0 returned, None where a worker reported a failure.

    `TorchTrainer.fit` runs in a thread: on the main thread it would take Ctrl-C for itself and save nothing.

    Raises:
        RunFailed: the workers died more often than is forgiven.
        MachinesFailed: one of `places` is gone, and so the gang cannot be healed.
        Interrupted: a second signal.
    """
    done: dict[str, Any] = {}

    name = f"ray-{secrets.token_hex(4)}"

    def run() -> None:
        try:
            done["result"] = make_trainer(job, name, places).fit().return_value
        except BaseException as error:
            done["error"] = error
        with contextlib.suppress(StorageError):  # Ray's own notes, of no use to anybody
            storage.remove_dir(storage.join(job.run_root, name))

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    failed_at: float | None = None
    looked_at = time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        watch.look()
        signals.check()
        if time.monotonic() - looked_at > _LOOK_AT_NODES_S:
            draining.look(leaving_nodes())
            if places is not None:
                check_alive(places, snapshot())
            looked_at = time.monotonic()
        if failed_at is None:
            with contextlib.suppress(StorageError):  # asked again at the next look
                failed_at = time.monotonic() if storage.list_names(job.paths.failures) else None
        if failed_at is not None and time.monotonic() - failed_at > _FAILURE_GRACE_S:
            return None
    watch.look()
    if "error" in done:
        check_alive(places or (), snapshot())
        raise RunFailed(root_cause(done["error"])) from done["error"]
    result: Record | None = done["result"]
    return result


def make_trainer(job: Job, name: str, places: Sequence[str] | None = None) -> Any:
    """The trainer of a job: all that Ray Train is told.

    Args:
        name: under which Ray keeps a state of its own, and would go on from one that it finds: a new one each time.
        places: the node of each worker.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = job.spec.resources
    if resources.num_workers <= _FEW_WORKERS:
        set_default("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # its own 2 s pass before an end, or a death, is seen
    each = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        each["GPU"] = float(resources.gpus_per_worker)
    return TorchTrainer(
        ray_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker=each,
            accelerator_type=resources.accelerator_type,
            label_selector=[{NODE_LABEL: place} for place in places] if places is not None else None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=job.run_root,
            failure_config=FailureConfig(
                max_failures=MAX_WORKER_FAILURES, controller_failure_limit=MAX_WORKER_FAILURES
            ),
            # Ray Train runs the loop in a thread, to which glibc would give an arena of its own, out of reach of
            # `keep_freed_memory`: half a million page faults a step.
            worker_runtime_env=None if resources.gpus_per_worker else {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        ),
        datasets={"train": _placeholder},
        dataset_config=ordered_data_config(job),
    )


def _placeholder() -> Any:
    """Ray Train wants a data set before it asks the data configuration; the rows come from the prepared shards."""
    import ray.data

    return ray.data.range(1)


def ordered_data_config(job: Job) -> Any:
    """A data configuration that gives every worker exactly its rows, from the step its group starts at.

    Ray Train calls `configure` anew for every worker group, when rank 0 asks for its rows; by then rank 0 has published
    the start (see `RayGang.steps`).
    """
    import ray.train

    class OrderedData(ray.train.DataConfig):  # type: ignore[misc]  # ray carries no types
        def configure(
            self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
        ) -> list[dict[str, Any]]:
            start = int(read_attempt(job.paths)["start"])
            iterators = ray_iterators(job.prepared_root, job.spec, start, worker_node_ids)
            return [{"train": rows} for rows in iterators]

    return OrderedData()


def root_cause(error: BaseException) -> str:
    """The first dead worker's last words, without Ray's frames around them."""
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return f"Ray Train gave the run up: {_last_line(error)}"
    rank, failure = next(iter(failures.items()))
    cause = getattr(failure, "cause", None) or failure
    return f"workers died more than {MAX_WORKER_FAILURES} times; the last time rank {rank}: {_last_line(cause)}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
