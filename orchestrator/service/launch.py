"""Launches: how the driver of an attempt is started."""

from __future__ import annotations

from cluster.backend import Launch
from cluster.settings import DriverPlace, ca_for_drivers, protocols_environment
from orchestrator.controller.drivers import LaunchOf
from orchestrator.queue.clients import environment_of, ray_submission_of
from orchestrator.queue.records import Job
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.context.identity import attempt_token


def launch_of(context: ServiceContext) -> LaunchOf:
    """Make the function that describes how to start a driver.

    Every driver is `python -m jobs.drivers.attempt`, and asks the server for the rest. The function raises StoreBroken.
    """

    def launch(job: Job) -> Launch:
        token = attempt_token(context.driver_key.value(), job.job_id, job.attempt)
        place = DriverPlace(context.url, job.job_id, job.attempt, token, context.queue, context.other_urls)
        return Launch(
            job.submission,
            (*context.python, "-m", "jobs.drivers.attempt"),
            environment={**place.environment(), **protocols_environment(), **ca_for_drivers()},
            like=ray_submission_of(job),
            like_digest=environment_of(job),
            metadata={"job": job.job_id, "tenant": job.tenant, "gpus": _gpus(job)},
        )

    return launch


def _gpus(job: Job) -> str:
    """Format the GPUs on each node, as in `n1=4 n2=4`."""
    return " ".join(f"{node}={workers * job.gang.gpus_per_worker}" for node, workers in job.placement)
