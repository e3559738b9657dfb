"""One attempt of a queued job of kind command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from cluster.errors import Interrupted, SpecError
from cluster.settings import DriverPlace, ray_address
from jobs.drivers.command.gang import GangWatch, Log, Process
from jobs.drivers.command.member import local_gang
from jobs.drivers.command.places import Place, places_of, variables_of_job
from jobs.drivers.link.link import Say
from jobs.drivers.link.messages import Registered
from jobs.drivers.stop_request import StopRequest
from jobs.drivers.training_attempt import local_gpus
from jobs.spec.command import CommandSpec
from jobs.spec.load import spec_of


def drive_command(registered: Registered, place: DriverPlace, stop: StopRequest, descriptor: int, say: Say) -> int:
    """Run the job's program to its end and return the driver's exit code.

    Args:
        descriptor: receives the output of all processes.

    Raises:
        FleetuneError: the program could not be started, was stopped, or its machines failed.
    """
    spec = spec_of(registered.spec)
    if not isinstance(spec, CommandSpec):
        raise SpecError(f"the server says that the job is a command, but its spec is of kind {spec.kind}")
    places = places_of(registered.placement, spec.resources.num_workers)
    variables = variables_of_job(spec, registered, place.job_id, place.attempt)
    log = Log(lambda lines: _write_all(descriptor, lines), registered.secrets.values())
    stop.defer()
    with _gang(registered, spec, places, variables, stop, say) as processes:
        _check(stop)
        return GangWatch(processes, log, lambda: stop.asked, say).until_the_end()


@contextlib.contextmanager
def _gang(
    registered: Registered,
    spec: CommandSpec,
    places: tuple[Place, ...],
    variables: dict[str, str],
    stop: StopRequest,
    say: Say,
) -> Iterator[Sequence[Process]]:
    if registered.engine == "ray":
        from jobs.drivers.command.ray_gang import ray_gang

        with ray_gang(spec, places, variables, ray_address() or "auto", lambda: _check(stop)) as processes:
            yield processes
        return
    count = len(places) * spec.resources.gpus_per_worker
    with local_gpus(count, say) as gpus, local_gang(spec, places, variables, gpus) as members:
        yield members


def _check(stop: StopRequest) -> None:
    """Raise Interrupted if the driver was asked to stop."""
    if stop.asked:
        raise Interrupted("asked to stop before the program was started")


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
