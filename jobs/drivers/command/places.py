"""Which process of a gang is where, and what its environment says of it. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import OUT_OF_MEMORY_EXIT, TRY_AGAIN_EXIT
from jobs.drivers.link.messages import Registered
from jobs.errors import MachinesFailed
from jobs.spec.command import CommandSpec

# Of the driver alone: who has them may speak for the job.
NOT_FOR_PROGRAMS = ("FLEETUNE_DRIVER_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR")


@dataclass(frozen=True)
class Place:
    """The place of one process in its gang."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    node: str


def places_of(placement: Sequence[tuple[str, int]], num_workers: int) -> tuple[Place, ...]:
    """Ranks in the order of the lease, those of one node together. Raises MachinesFailed."""
    by_node: dict[str, int] = {}
    for node, workers in placement:
        by_node[node] = by_node.get(node, 0) + workers
    if sum(by_node.values()) != num_workers:
        raise MachinesFailed(f"the lease has room for {sum(by_node.values())} processes, and the job has {num_workers}")
    places: list[Place] = []
    for node_rank, (node, workers) in enumerate(by_node.items()):
        first = len(places)
        places += [Place(first + local, num_workers, local, workers, node_rank, node) for local in range(workers)]
    return tuple(places)


def variables_of(place: Place, master: tuple[str, int], gpus: Sequence[str]) -> dict[str, str]:
    """What tells a process its place.

    Args:
        master: address and port where rank 0 may listen.
        gpus: those of this process, as CUDA_VISIBLE_DEVICES names them; none: it sees none.
    """
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "NODE_RANK": str(place.node_rank),
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
    }


def variables_of_job(spec: CommandSpec, registered: Registered, job_id: str, attempt: int) -> dict[str, str]:
    """What all processes of the gang are told; the spec's own variables go before those of the surroundings."""
    parents = dict(registered.parents)
    told = {"FLEETUNE_JOB": job_id, "FLEETUNE_ATTEMPT": str(attempt), "FLEETUNE_PARENT_RUNS": json.dumps(parents)}
    if parents:
        told["FLEETUNE_PARENT_RUN"] = next(iter(parents.values()))
    return {"PYTHONUNBUFFERED": "1", **spec.env, **registered.secrets, **told}


def environment_of_program(around: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """`around` is what the process that starts the program has."""
    kept = {name: value for name, value in around.items() if name not in NOT_FOR_PROGRAMS}
    return {**kept, **added}


def exit_code_of(code: int) -> int:
    """What a driver's exit code says of the first process that failed.

    A queue reads meanings into 2 (bad input), 75 (the machines failed it), 76 (out of memory), 126 and more; a program
    that ends so means none of them.
    """
    return code if 0 <= code <= 125 and code not in (2, TRY_AGAIN_EXIT, OUT_OF_MEMORY_EXIT) else 1


def how_it_ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
