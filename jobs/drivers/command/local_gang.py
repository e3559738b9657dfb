"""Runs the processes of a gang on this machine, as children of the driver."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from cluster.settings import with_environment
from jobs.drivers.command.member import Member
from jobs.drivers.command.places import Place, environment_of_program, variables_of
from jobs.errors import SpecError
from jobs.spec.command import CommandSpec


@contextlib.contextmanager
def local_gang(
    spec: CommandSpec, places: Sequence[Place], variables: Mapping[str, str], gpus: Sequence[str]
) -> Iterator[list[Member]]:
    """Start all processes. When the context ends, none of them runs any more.

    Args:
        gpus: GPUs of all processes together.

    Raises:
        SpecError: the program cannot be started.
    """
    members = [Member() for _ in places]
    each, master = spec.resources.gpus_per_worker, ("127.0.0.1", free_port("127.0.0.1"))
    try:
        for member, place in zip(members, places, strict=True):
            own = variables_of(place, master, gpus[place.rank * each : (place.rank + 1) * each])
            environment = environment_of_program(with_environment({}), {**variables, **own})
            if problem := member.start(spec.command, environment, spec.working_dir or os.getcwd()):
                raise SpecError(problem)
        yield members
    finally:
        for member in members:
            member.close()


def free_port(host: str) -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
