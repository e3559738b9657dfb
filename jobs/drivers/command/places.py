"""Assigns the processes of a gang to nodes, and makes their environment. Pure functions."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import DIVERGED_EXIT, OUT_OF_MEMORY_EXIT, TRY_AGAIN_EXIT, MachinesFailed
from cluster.text import many
from jobs.drivers.link.messages import Registered
from jobs.drivers.native_crash import CRASHES
from jobs.spec.command import CommandSpec

# Variables of the driver. A program must not have them, because with them it could act for the job.
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
    """Assign ranks in the order of the lease, those of one node together. Raises MachinesFailed."""
    by_node: dict[str, int] = {}
    for node, workers in placement:
        by_node[node] = by_node.get(node, 0) + workers
    if sum(by_node.values()) != num_workers:
        raise MachinesFailed(
            f"the lease has room for {many(sum(by_node.values()), 'process')}, but the job has {num_workers}"
        )
    places: list[Place] = []
    for node_rank, (node, workers) in enumerate(by_node.items()):
        first = len(places)
        places += [Place(first + local, num_workers, local, workers, node_rank, node) for local in range(workers)]
    return tuple(places)


def variables_of(place: Place, master: tuple[str, int], gpus: Sequence[str]) -> dict[str, str]:
    """Return the variables that tell a process its place in the gang.

    Args:
        master: address and port where rank 0 may listen.
        gpus: GPUs of this process, as CUDA_VISIBLE_DEVICES names them; if empty, it sees none.
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
    """Return the variables of all processes of the gang. Later ones win: the spec's, secrets, then Fleetune's."""
    parents = dict(registered.parents)
    told = {"FLEETUNE_JOB": job_id, "FLEETUNE_ATTEMPT": str(attempt), "FLEETUNE_PARENT_RUNS": json.dumps(parents)}
    if parents:
        told["FLEETUNE_PARENT_RUN"] = next(iter(parents.values()))
    return {"PYTHONUNBUFFERED": "1", **spec.env, **registered.secrets, **told}


def environment_of_program(around: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Combine variables; `around` is the environment of the process that starts the program."""
    kept = {name: value for name, value in around.items() if name not in NOT_FOR_PROGRAMS}
    return {**kept, **added}


def exit_code_of(code: int) -> int:
    """Translate the exit code of the first failed process into the driver's exit code.

    A queue gives meanings to 2 (bad input), 75 (the machines failed), 76 (out of memory), 77 (diverged), 126 and above.
    A program that ends with one of them means something else, so the driver ends with 1.
    """
    return code if 0 <= code <= 125 and code not in (2, TRY_AGAIN_EXIT, OUT_OF_MEMORY_EXIT, DIVERGED_EXIT) else 1


def how_it_ended(code: int) -> str:
    """Describe the end of a process as a verb phrase. `code`: its exit code; -N for signal N."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"
    if name in CRASHES:
        return f"crashed in native code ({name}, signal {-code}). PYTHONFAULTHANDLER=1 in env shows where a Python was"
    why = ", which the kernel sends when memory runs out, or an operator" if name == "SIGKILL" else ""
    return f"was ended by {name} (signal {-code}{why})"
