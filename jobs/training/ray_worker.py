"""The function that Ray Train calls in each worker. Light to import: the driver and Ray's controller load it too."""

from __future__ import annotations

from typing import Any

from jobs.journal import Record
from jobs.quiet import redirected_output
from jobs.training.job import Job
from jobs.training.vitals import Vitals


def ray_worker(config: dict[str, Any]) -> Record | None:
    """The function that Ray Train calls on every worker. Returns what `jobs.training.worker.guarded` returns."""
    job: Job = config["job"]
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    with redirected_output(job.paths.log(f"rank-{rank}")), Vitals(job.driver, rank):
        from jobs.training.gang import RayGang
        from jobs.training.loop import train
        from jobs.training.worker import guarded

        return guarded(job, RayGang(job.paths, job.spec.resources.gpus_per_worker, job.driver), train)
