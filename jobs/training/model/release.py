"""Decides faster than DeepSpeed which gathered parameters ZeRO-3 releases after a module, with the same result.

DeepSpeed decides once for each call of a module, in the first pass after it has recorded the order of the calls. For
each, it visits the later calls one by one until they have `max_reuse_distance` elements. Most small models have fewer,
so that this pass took twice as long as later ones.
"""

from __future__ import annotations

from typing import Any

from jobs.planning.gathering import Uses

PRIVATE = "_PartitionedParameterCoordinator__"


def decide_release_at_once(coordinator: Any) -> None:
    """Let DeepSpeed's coordinator of ZeRO-3 decide with `Uses`, which are found once for each order.

    DeepSpeed's own decision stays for modules that it gathers as a whole. As there, a decision is kept, but only until
    another order is recorded.
    """
    from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params
    from deepspeed.utils import z3_leaf_module

    decide = getattr(coordinator, f"{PRIVATE}params_to_release")
    distance = getattr(coordinator, f"{PRIVATE}max_reuse_dist_in_numel")
    order: Any = None
    uses, decided = Uses.of(()), dict[tuple[int, int], frozenset[int]]()

    def params_to_release(module: Any, call: int) -> set[int]:
        nonlocal order, uses
        if z3_leaf_module(module):
            return set(decide(module, call))
        recorded = getattr(coordinator, f"{PRIVATE}submodule_order")
        if recorded is not order:
            order = recorded
            uses = Uses.of([(one.ds_id, one.ds_numel) for one in iter_params(called)] for called in recorded)
            decided.clear()
        if (module.ds_id, call) not in decided:
            fetched_for = getattr(coordinator, f"{PRIVATE}most_recent_step_id_param_fetched_for")
            decided[module.ds_id, call] = frozenset(
                one.ds_id
                for one in iter_params(module)
                if not one.ds_persist and fetched_for[one] <= call and not uses.is_soon(one.ds_id, call, distance)
            )
        return set(decided[module.ds_id, call])  # DeepSpeed adds to it

    setattr(coordinator, f"{PRIVATE}params_to_release", params_to_release)
