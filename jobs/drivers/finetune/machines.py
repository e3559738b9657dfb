"""Finds out on which machines the workers of a run will be, for its plan, and waits for room there."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence

from cluster.capacity.feasibility import largest_gang
from cluster.capacity.inventory import Inventory
from cluster.errors import SpecError
from cluster.local.machine import Hardware, hardware_here
from cluster.ray.connection import free_now, held_places, wait_for_room
from cluster.ray.node_tasks import ask_nodes
from jobs.planning import gang_of, with_workers
from jobs.planning.accelerators import accelerator_with
from jobs.preflight.run_plan import Announce, Places
from jobs.spec.finetune import Spec

# Share of a machine's memory above which Ray kills workers (RAY_memory_usage_threshold).
_MOST_USED = 0.95
_MOST_ASKED = 8  # nodes; the others of a gang are like them
_PATIENCE_S = 20.0
_FULL_SIZE_WITHIN_S = 60.0  # slots of workers that were lost are free again after seconds


def places_under_ray(spec: Spec, assigned: Sequence[str] | None, alone: bool, gangs: int = 1) -> Places | None:
    """Ask the gangs' nodes for their hardware; None if the nodes are not known yet, or if one does not answer.

    Args:
        spec: of the job that each gang trains.
        assigned: node of each worker, gang by gang, if a queue has assigned them.
        alone: Ray runs on this machine only.
    """
    if alone:
        return places_here(spec, gangs)
    places = assigned or _likely_places(spec, gangs * spec.resources.num_workers, free_now())
    asked = list(dict.fromkeys(places))[:_MOST_ASKED]
    found = ask_nodes(asked, hardware_here, timeout_s=_PATIENCE_S)
    return places_of(spec, list(found.values()), places) if places and len(found) == len(asked) else None


class _LessRoom(Exception):
    """Raised to end a wait for room. `spec`: with as many workers as there is room for."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec


def find_room(
    spec: Spec,
    places: Sequence[str] | None,
    announce: Announce,
    check: Callable[[], None] = lambda: None,
    numbers: Sequence[int] = (),
) -> Spec:
    """Wait for free slots for a gang. Ray Train would wait forever for a lost node, and too briefly for a busy one.

    Args:
        places: node of each worker, as a queue assigned it; None lets Ray choose.
        check: called while this waits; an exception from it ends the wait.
        numbers: of workers with which an elastic job can run. After a minute it gets as many as there is room for.

    Returns:
        The spec with the number of workers for which there is room.

    Raises:
        MachinesFailed: one of these nodes is gone, or has no room.
    """
    gang = gang_of(spec)
    if places is not None:
        with held_places(gang, places, check):
            return spec
    began_s = time.monotonic()

    def look() -> None:
        check()
        if time.monotonic() - began_s > _FULL_SIZE_WITHIN_S and (fewer := _with_fewer(spec, numbers)) is not None:
            raise _LessRoom(fewer)

    try:
        wait_for_room(gang, lambda text: announce("phase", text, phase="workers"), look)
    except _LessRoom as less:
        return find_room(less.spec, None, announce, check, numbers)
    return spec


def _with_fewer(spec: Spec, numbers: Sequence[int]) -> Spec | None:
    """Return the spec with the largest smaller number of workers that fits now; None if none fits."""
    fewer = [number for number in numbers if number < spec.resources.num_workers]
    if not fewer:
        return None
    most = largest_gang(gang_of(spec), free_now())
    for number in sorted((number for number in fewer if number <= most), reverse=True):
        with contextlib.suppress(SpecError):  # the plan may have chosen a batch that does not go with it
            return with_workers(spec, number)
    return None


def places_here(spec: Spec, gangs: int = 1) -> Places | None:
    """Describe this machine with all workers of the gangs."""
    return places_of(spec, [hardware_here()], [""] * gangs * spec.resources.num_workers)


def places_of(spec: Spec, found: Sequence[Hardware], places: Sequence[str]) -> Places | None:
    """Describe the weakest of the machines, which limits the plan; None if its type of GPU is unknown.

    Args:
        places: node of each worker, gang by gang.
    """
    free = min(int(hardware.memory.limit_bytes * _MOST_USED) - hardware.memory.used_bytes for hardware in found)
    gpu = None
    if spec.resources.gpus_per_worker:
        weakest = min(found, key=lambda hardware: hardware.gpu_bytes)
        gpu = accelerator_with(weakest.gpu, weakest.gpu_bytes) if weakest.gpu else None
        if gpu is None:
            return None
    each = spec.resources.num_workers
    nodes = max(len(set(places[first : first + each])) for first in range(0, len(places), each))
    return Places(nodes, max(Counter(places).values()), max(free, 0), gpu)


def _likely_places(spec: Spec, workers: int, inventory: Inventory) -> list[str]:
    """Fill the nodes one after the other, as Ray does without an assignment; [] if their types of GPU differ.

    Args:
        workers: number in all gangs.
        inventory: the free slots.
    """
    resources, places = spec.resources, list[str]()
    if resources.gpus_per_worker and len({node.accelerator_type for node in inventory.nodes if node.gpus}) > 1:
        return []
    for node in inventory.nodes:
        fits = node.cpus // resources.cpus_per_worker
        if resources.gpus_per_worker:
            fits = min(fits, node.gpus) if resources.accelerator_type in (None, node.accelerator_type) else 0
        places += [node.node_id] * fits
    return places[:workers] if len(places) >= workers else []
