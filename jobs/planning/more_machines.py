"""Finds how many machines a job needs that does not fit. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from jobs.planning.accelerators import GPUS_OF_A_NODE, Machines
from jobs.planning.batching import Batching
from jobs.planning.memory import ModelTrace, static_memory
from jobs.planning.strategies import (
    Option,
    Sufficient,
    Trace,
    option_of,
    strategies,
    with_micro_batch,
    with_smaller_buffers,
)
from jobs.planning.strategy import Strategy
from jobs.spec.finetune import Planned

_MOST_WORKERS: Final = 1024


def sufficient_machines(
    spec_strategy: Strategy,
    batching_on: Callable[[int], Batching | None],
    choosable: frozenset[Planned],
    trace: Trace,
    machines: Machines,
    copied_bytes: int,
) -> Sufficient | None:
    """Double the machines until an option fits. None: not with 1,024 workers, or with as many as a step has rows.

    Args:
        spec_strategy, choosable, trace, copied_bytes: see `jobs.planning.strategies.options`. If the micro-batch may be
            chosen, it is 1 here, which needs least memory.
        batching_on: returns the batching of a number of workers; None: the rows cannot be distributed over them.
        machines: on which nothing fits.
    """
    if "per_device_train_batch_size" in choosable:
        spec_strategy = replace(spec_strategy, per_device_train_batch_size=1)
        choosable -= {"per_device_train_batch_size"}
    for larger in _larger(machines):
        batching = batching_on(larger.gpus)
        if batching is None:
            return None
        batching = with_micro_batch(batching, spec_strategy.per_device_train_batch_size)
        spec_strategy = replace(spec_strategy, accumulates=batching.accumulation > 1)
        found = list[Option]()
        for strategy in dict.fromkeys(
            (spec_strategy, *strategies(spec_strategy, batching, choosable, machines.is_cpu))
        ):
            if not _may_fit(trace(strategy), strategy, larger, copied_bytes):
                continue
            found.append(option_of(strategy, spec_strategy, batching, trace(strategy), larger, copied_bytes))
            if (small := with_smaller_buffers(found[-1], choosable, larger)) is not None:
                found.append(option_of(small, spec_strategy, batching, trace(small), larger, copied_bytes))
        if fitting := [option for option in found if option.fits]:
            return Sufficient(larger, min(fitting, key=lambda option: option.time.seconds))
    return None


def _may_fit(traced: ModelTrace, strategy: Strategy, machines: Machines, copied_bytes: int) -> bool:
    """Whether the states alone fit. This is checked first: following the trace of a 70B model takes some 50 ms."""
    states = static_memory(traced, strategy, machines.gpus, "cpu" if machines.is_cpu else "cuda")
    copies = copied_bytes * traced.trained // machines.gpus
    if machines.is_cpu:
        return states.used + states.host + copies <= machines.accelerator.memory
    return states.used <= machines.accelerator.memory and states.host + copies <= machines.host_memory


def _larger(machines: Machines) -> Iterator[Machines]:
    """Double the GPUs, again and again: in one node up to 8, unless its memory is given, then in more nodes."""
    while 2 * machines.gpus <= _MOST_WORKERS:
        node_grows = machines.nodes == 1 and machines.node_gib is None and not machines.is_cpu
        if node_grows and 2 * machines.gpus_per_node <= GPUS_OF_A_NODE:
            machines = replace(machines, gpus_per_node=2 * machines.gpus_per_node)
        else:
            machines = replace(machines, nodes=2 * machines.nodes)
        yield machines
