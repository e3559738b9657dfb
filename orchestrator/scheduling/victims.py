"""Whom to interrupt, so that a gang gets its nodes: the least loss that makes room.

Everything is looked up by slot: a node's slots, sorted by what freeing each would cost, say what any number of slots on
that node costs, for all nodes at once. The few cheapest nodes are then looked at job by job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.occupancy import Occupancy, Placement
from cluster.resources import Gang
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.standing import Standing
from orchestrator.scheduling.table import Floats

_ALWAYS = 1e300  # a victim whatever it is expected to take
_NEVER = -np.inf
_LOOKED_AT = 4  # nodes, job by job
# For slots that are FOREIGN, ABSENT or FREE, which count from the end.
_NOBODYS_VALUE, _NOBODYS_HARM = (_NEVER, _NEVER, np.inf), (np.inf, 0.0, 0.0)
_CHANCE_S = 180.0  # bounds what is lost by interrupting a job that would soon have ended


@dataclass(frozen=True)
class Room:
    """Jobs to interrupt, and where the gang goes then."""

    victims: tuple[int, ...]
    placement: Placement


class Victims:
    """The running jobs as victims, while a plan is made. `cluster` is the plan's own, and changes with it."""

    def __init__(self, snapshot: Snapshot, standing: Standing, cluster: Occupancy, policy: Policy) -> None:
        jobs = snapshot.jobs
        self._jobs, self._standing, self._cluster, self._policy = jobs, standing, cluster, policy
        self.movable = snapshot.running & jobs.preemptible & (jobs.interruptions < policy.most_interruptions)
        pause = policy.protected_s * (1.0 + jobs.interruptions / policy.protected_growth)
        self.protected_until_s: Floats = jobs.started_s + pause
        self.worth: Floats = standing.index - policy.cost_margin * (
            jobs.interruption_cost_s / jobs.powered_sizes(policy.size_exponent)
        )
        self._free_to_go = self.movable & (snapshot.now_s >= self.protected_until_s - 1e-6)
        self._value = np.where(self._free_to_go, self.worth, _NEVER)
        self._fits: dict[tuple[bool, str | None], NDArray[np.bool_]] = {}
        self._one_class = bool((standing.level == standing.level[:1]).all()) and standing.entitled is None
        self._best = float(self._value.max(initial=_NEVER))
        # What stopping a job costs, for each of its slots: its own loss, and that of one which was about to end.
        harm = jobs.interruption_cost_s + 3600.0 * 3600.0 / (np.maximum(standing.index, 0.0) + _CHANCE_S)
        self._harm: Floats = np.concatenate([harm, _NOBODYS_HARM])

    def gone(self, row: int) -> None:
        """This job is interrupted already, or was started by this plan."""
        self._value[row] = _NEVER
        self._free_to_go[row] = False

    def may_go(self, row: int) -> bool:
        return bool(self._free_to_go[row])

    def nobody_yields_to(self, row: int) -> bool:
        """Whether no job would make room for this one, nor for any that stands behind it."""
        return self._one_class and self._best <= self._policy.margin * float(self._standing.index[row])

    def slots_that_may_go(self) -> NDArray[np.intp]:
        """[nodes]; slots of jobs that may be interrupted now."""
        slots: NDArray[np.intp] = np.append(self._free_to_go, (False, False, False))[self._cluster.slots].sum(axis=1)
        return slots

    def room_for(self, row: int, gang: Gang, barred: NDArray[np.bool_] | None = None) -> Room | None:
        """The cheapest room for a job that waits; None where none is worth its cost.

        Args:
            barred: [nodes]; where it may not go.
        """
        if self.nobody_yields_to(row):
            return None
        value, threshold = self._values_for(row), self._policy.margin * float(self._standing.index[row])
        slots = self._cluster.slots
        fits = self._fitting(gang) if barred is None else self._fitting(gang) & ~barred
        open_slots = (np.concatenate([value, _NOBODYS_VALUE])[slots] > threshold) & fits[:, None]
        if self._jobs.size[row] <= self._cluster.sizes[fits].max(initial=0):
            return self._on_one_node(row, gang, open_slots)
        return self._on_whole_nodes(gang, open_slots)

    def _values_for(self, row: int) -> Floats:
        """[rows]; the worth of each victim for this job: what a lower class runs always is, a higher class never."""
        if self._one_class:
            return self._value
        level, entitled = self._standing.level, self._standing.entitled
        value = np.where(level < level[row], _ALWAYS, np.where(level > level[row], _NEVER, self._value))
        if entitled is not None:
            own = self._jobs.tenant == self._jobs.tenant[row]
            value = np.where(entitled & ~own, _NEVER, value)
            if entitled[row]:
                value = np.where(~entitled & ~own, _ALWAYS, value)
        return np.where(self._free_to_go, value, _NEVER)

    def _fitting(self, gang: Gang) -> NDArray[np.bool_]:
        """[nodes]; where such a gang may be put."""
        key = (gang.gpus_per_worker > 0, gang.accelerator_type)
        if key not in self._fits:
            self._fits[key] = self._cluster.fits(gang)
        return self._fits[key]

    def _on_one_node(self, row: int, gang: Gang, open_slots: NDArray[np.bool_]) -> Room | None:
        size = int(self._jobs.size[row])
        nodes = (open_slots.sum(axis=1) >= size).nonzero()[0]
        if not len(nodes):
            return None
        harm = np.where(open_slots[nodes], self._harm[self._cluster.slots[nodes]], np.inf)
        cost = np.sort(harm, axis=1)[:, :size].sum(axis=1)
        rooms = []
        for node in nodes[np.argsort(cost, kind="stable")[:_LOOKED_AT]].tolist():
            victims = self._on(node, size, open_slots)
            if self._cpus_suffice(gang, node, gang.num_workers, victims):
                rooms.append((self._cost(victims), node, victims))
        if not rooms:
            return None
        _, node, victims = min(rooms)
        return Room(victims, ((node, gang.num_workers),))

    def _on_whole_nodes(self, gang: Gang, open_slots: NDArray[np.bool_]) -> Room | None:
        """Nodes of one kind that can be emptied, the cheapest first, and one for the rest."""
        per_worker = gang.gpus_per_worker or gang.cpus_per_worker
        cluster = self._cluster
        whole = ((open_slots.sum(axis=1) == cluster.sizes) & (cluster.sizes >= per_worker)).nonzero()[0]
        cost = self._harm[cluster.slots[whole]].sum(axis=1)
        order = whole[np.lexsort((whole, cost, -cluster.sizes[whole]))]
        rooms = []
        for kind in np.unique(cluster.kinds[whole]).tolist():
            room = self._emptied(gang, order[cluster.kinds[order] == kind].tolist(), per_worker, open_slots)
            if room is not None:
                rooms.append((self._cost(room.victims), kind, room))
        return min(rooms)[2] if rooms else None

    def _emptied(self, gang: Gang, nodes: Sequence[int], per_worker: int, open_slots: NDArray[np.bool_]) -> Room | None:
        placement: list[tuple[int, int]] = []
        victims: dict[int, None] = {}
        left = gang.num_workers
        for node in nodes:
            each = min(left, int(self._cluster.sizes[node]) // per_worker)
            on_node = self._on(node, each * per_worker, open_slots) if each == left else self._all_on(node)
            if not self._cpus_suffice(gang, node, each, on_node):
                continue
            placement.append((node, each))
            victims |= dict.fromkeys(on_node)
            left -= each
            if not left:
                return Room(tuple(victims), tuple(placement))
        return None

    def _all_on(self, node: int) -> tuple[int, ...]:
        line = self._cluster.slots[node]
        return tuple(np.unique(line[line >= 0]).tolist())

    def _on(self, node: int, size: int, open_slots: NDArray[np.bool_]) -> tuple[int, ...]:
        """The jobs on a node that make room for `size` slots together with what is free there, and no more than that.

        Those expected to take longest first, as long as they are not more than is needed; at last the smallest one that
        is enough.
        """
        line = self._cluster.slots[node]
        need = size - int(self._cluster.free[node])
        held: dict[int, int] = {}
        for holder in line[open_slots[node] & (line >= 0)].tolist():
            held[holder] = held.get(holder, 0) + 1
        chosen: dict[int, int] = {}
        for holder in sorted(held, key=lambda holder: (-self._value_of(holder), holder)):
            if 0 < held[holder] <= need:
                chosen[holder] = held[holder]
                need -= held[holder]
        if need > 0:
            last = min((slots, holder) for holder, slots in held.items() if holder not in chosen and slots >= need)
            need -= last[0]
            chosen[last[1]] = last[0]
        for holder in list(chosen):  # what the last one frees may have made others needless
            if chosen[holder] <= -need:
                need += chosen.pop(holder)
        return tuple(chosen)

    def _value_of(self, row: int) -> float:
        return float(self.worth[row])

    def _cost(self, victims: Sequence[int]) -> float:
        return sum(float(self._harm[victim] * self._jobs.size[victim]) for victim in victims)

    def _cpus_suffice(self, gang: Gang, node: int, workers: int, victims: Sequence[int]) -> bool:
        free = int(self._cluster.cpus_free[node])
        line = self._cluster.slots[node]
        for victim in victims:
            held = self._jobs.gang_of(victim)
            per_worker = held.gpus_per_worker or held.cpus_per_worker
            free += int((line == victim).sum()) // per_worker * held.cpus_per_worker
        return free >= workers * gang.cpus_per_worker
