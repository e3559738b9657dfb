"""Decides which gathered parameters ZeRO-3 releases after a module: faster than DeepSpeed, with the same result.

DeepSpeed decides once for each call of a module, in the first pass after it has recorded the order of the calls. For
each, it visits the later calls one by one until they have `max_reuse_distance` elements. Most small models have fewer,
so that this pass took twice as long as later ones.

The result differs for evaluations. DeepSpeed keeps what the backward pass will use, which an evaluation has not. So it
gathers anew for each batch: before any training the whole model (half of the time for a small one), later frozen
embeddings (a third of the time for MiniLM with LoRA). Here the next batch of an evaluation counts as a part of the
order. The first step of training after an evaluation records a new order at once; DeepSpeed would first follow the old
one to its end.
"""

from __future__ import annotations

from typing import Any

import torch

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
    record, reset = coordinator.record_module, coordinator.reset_step
    order: Any = None
    forward, trains = 0, True  # the calls before the backward pass of the newest order, and whether it has one
    evaluates = False  # whether this pass is a batch of an evaluation
    uses, repeated = Uses.of(()), Uses.of(())
    decided = dict[tuple[int, int, bool], frozenset[int]]()

    def record_module(module: Any) -> None:
        nonlocal forward, trains
        if not getattr(coordinator, f"{PRIVATE}submodule_order"):
            forward, trains = 0, False
        trains = trains or torch._C._current_graph_task_id() != -1
        forward += not trains
        record(module)

    def reset_step() -> None:  # at the start of each pass
        nonlocal evaluates
        evaluates = not torch.is_grad_enabled()
        if not trains and not evaluates and coordinator.is_complete_trace():
            coordinator._invalidate_trace()
        reset()

    def params_to_release(module: Any, call: int) -> set[int]:
        nonlocal order, uses, repeated
        if z3_leaf_module(module):
            return set(decide(module, call))
        recorded = getattr(coordinator, f"{PRIVATE}submodule_order")
        if recorded is not order:
            order = recorded
            calls = [[(one.ds_id, one.ds_numel) for one in iter_params(called)] for called in recorded]
            # Training waits for the backward pass, at most two models away. With half the distance, an evaluation
            # keeps no model whole of which training would not keep what it trains.
            uses, repeated = Uses.of(calls), Uses.of(calls[:forward] * 2)
            decided.clear()
        if (module.ds_id, call, evaluates) not in decided:
            fetched_for = getattr(coordinator, f"{PRIVATE}most_recent_step_id_param_fetched_for")
            decided[module.ds_id, call, evaluates] = frozenset(
                one.ds_id
                for one in iter_params(module)
                if not one.ds_persist
                and fetched_for[one] <= call
                and not uses.is_soon(one.ds_id, call, distance)
                and not (evaluates and repeated.is_soon(one.ds_id, call, distance // 2))
            )
        return set(decided[module.ds_id, call, evaluates])  # DeepSpeed adds to it

    coordinator.record_module, coordinator.reset_step = record_module, reset_step
    setattr(coordinator, f"{PRIVATE}params_to_release", params_to_release)
