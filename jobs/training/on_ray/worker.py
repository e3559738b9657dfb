"""The functions that Ray Train calls in each worker. Light to import: the driver and Ray's controller import it too."""

from __future__ import annotations

import functools
from typing import Any

from jobs.console import redirected_output
from jobs.storage.journal import Record
from jobs.training.pulse import PulseWriter
from jobs.training.vitals import Vitals
from jobs.training.worker_input import Job


def ray_worker(config: dict[str, Any]) -> Record | None:
    """Train the job of `config`. Returns what `jobs.training.loop.worker.guarded` returns."""
    job: Job = config["job"]
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    log = redirected_output(job.paths.log(f"rank-{rank}"))
    with log, Vitals(job.driver, rank), PulseWriter(job.driver, rank) as pulse:
        from jobs.training.loop.loop import train
        from jobs.training.loop.worker import guarded
        from jobs.training.worker_context import RayGang

        gang = RayGang(job.paths, job.spec.resources.gpus_per_worker, job.driver, pulse)
        return guarded(job, gang, train)


def warm_ray_worker(config: dict[str, Any]) -> Record | None:
    """Carry out a warm gang's orders, starting with number `first` of `config`. Returns what `guarded` returns."""
    job: Job = config["job"]
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    with redirected_output(job.paths.log(f"rank-{rank}")), Vitals(job.driver, rank):
        from jobs.training.loop.warm import serve
        from jobs.training.loop.worker import guarded
        from jobs.training.worker_context import RayGang

        gang = RayGang(job.paths, job.spec.resources.gpus_per_worker, job.driver)
        return guarded(job, gang, functools.partial(serve, first=config["first"]))
