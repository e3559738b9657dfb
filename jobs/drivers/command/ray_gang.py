"""Runs the processes of a gang on the nodes of a Ray cluster: one actor for each, in one placement group."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from cluster.errors import CapacityError, MachinesFailed, SpecError
from cluster.ray.connection import address_of, connected, held_places
from cluster.text import one_line
from jobs.drivers.command.member import Member, free_port
from jobs.drivers.command.places import Place
from jobs.planning import gang_of
from jobs.spec.command import CommandSpec

_ANSWER_S: Final = 120.0  # after which a process counts as lost
_END_S: Final = 15.0  # for all actors to end their programs


class RayProcess:
    """One process on a node, as the driver sees it."""

    def __init__(self, actor: Any, node: str) -> None:
        self._actor, self._node = actor, node

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        return cast(tuple[bytes, int | None], self.ask("read", wait_s))

    def stop(self, *, hard: bool = False) -> None:
        self.ask("stop", hard=hard)

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the actor and wait for the result. Raises MachinesFailed."""
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments, **named), timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            raise MachinesFailed(f"a process on node {self._node} is lost: {one_line(error)}") from error


class Host(Member):
    """Runs the program as a child of a Ray worker. `_actors` makes it an actor."""

    def free_port(self) -> int:
        return free_port("")

    def start_here(
        self, place: Place, spec: CommandSpec, master: tuple[str, int], variables: Mapping[str, str]
    ) -> str | None:
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return self.start_at(place, spec, master, variables, gpus)


@contextlib.contextmanager
def ray_gang(
    spec: CommandSpec,
    places: Sequence[Place],
    variables: Mapping[str, str],
    address: str,
    check: Callable[[], None],
) -> Iterator[list[RayProcess]]:
    """Start all processes. When the context ends, neither they nor their actors are left.

    Args:
        variables: variables of the programs; only the actors get them.
        check: called while this waits. An exception from it ends the wait.

    Raises:
        SpecError: the program cannot be started.
        MachinesFailed: the nodes no longer exist or have no free slots.
    """
    try:
        nodes, gang = [place.node for place in places], gang_of(spec)
        with (
            connected(address, None),
            held_places(gang, nodes, check) as group,
            _actors(spec, places, group) as processes,
        ):
            master = (address_of(places[0].node), processes[0].ask("free_port"))
            for process, place in zip(processes, places, strict=True):
                if problem := process.ask("start_here", place, spec, master, variables):
                    raise SpecError(problem)
            yield processes
    except CapacityError as error:
        raise MachinesFailed(str(error)) from error


@contextlib.contextmanager
def _actors(spec: CommandSpec, places: Sequence[Place], group: Any) -> Iterator[list[RayProcess]]:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources, kind = spec.resources, ray.remote(Host)
    actors = [
        kind.options(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            max_concurrency=3,  # one call reads, another one may stop
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place.rank),
        ).remote()
        for place in places
    ]
    try:
        yield [RayProcess(actor, place.node) for actor, place in zip(actors, places, strict=True)]
    finally:
        closed = [actor.close.remote() for actor in actors]
        ray.wait(closed, num_returns=len(closed), timeout=_END_S)
        for actor in actors:
            ray.kill(actor)
