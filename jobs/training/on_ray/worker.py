"""The function that Ray Train calls in each worker. Light to import: the driver and Ray's controller import it too."""

from __future__ import annotations

import functools
from typing import Any

from cluster.imports import quick_imports
from jobs.console import redirected_output
from jobs.run.paths import rank_name
from jobs.storage.journal import Record
from jobs.training.pulse import PulseWriter
from jobs.training.vitals import Vitals
from jobs.training.worker_input import Job


def ray_worker(config: dict[str, Any]) -> Record | None:
    """Train the job of `config`, or carry out a warm gang's tasks, starting with number `first` of `config`.

    Returns what `jobs.training.loop.worker.guarded` returns.
    """
    import ray.train

    job: Job = config["job"]
    first: int | None = config.get("first")
    rank = ray.train.get_context().get_world_rank()
    log = redirected_output(job.paths.log(rank_name(rank)))
    with log, Vitals(job.driver, rank), PulseWriter(job.driver if first is None else "", rank) as pulse:
        with quick_imports():
            from jobs.training.loop.loop import train
            from jobs.training.loop.warm import serve
            from jobs.training.loop.worker import guarded
            from jobs.training.worker_context import RayWorkerContext

        worker = RayWorkerContext(job.paths, job.spec.resources.gpus_per_worker, job.driver, pulse)
        return guarded(job, worker, train if first is None else functools.partial(serve, first=first))
