"""On how many more machines a job would fit that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from jobs.planning.accelerators import CPU, GIB, Machines, accelerator_of
from jobs.planning.batching import Batching
from jobs.planning.memory import COPIED
from jobs.planning.more_machines import sufficient_machines
from jobs.planning.strategies import Sufficient, option_of
from jobs.planning.strategy import Strategy
from jobs.spec.finetune import PLANNED, Planned
from tests.unit.jobs.planning.test_strategies import traced

ALL_BUT_MICRO_BATCH: frozenset[Planned] = PLANNED - {"per_device_train_batch_size"}


def found(
    machines: Machines, rows: int = 1024, strategy: Strategy | None = None, choosable: frozenset[Planned] = PLANNED
) -> Sufficient | None:
    def batching_on(workers: int) -> Batching | None:
        return None if rows < workers else Batching(rows, 4, -(-rows // (4 * workers)), workers)

    return sufficient_machines(strategy or Strategy(), batching_on, choosable, traced, machines, COPIED)


def on(name: str, nodes: int = 1, gpus: int = 1) -> Machines:
    return Machines(nodes, gpus, accelerator_of(name))


@pytest.mark.parametrize(
    ("machines", "larger"),
    [
        # 7 billion parameters. With all offloaded, each takes 22 bytes on the hosts and 12 for the copy: 238 GB. A host
        # has 144 GiB for each A100, and 48 for each T4.
        (on("A100-80"), "2xA100-80"),
        (on("A100-40"), "2xA100-40"),
        (on("T4-16"), "8xT4-16"),
        (replace(on("T4-16"), node_gib=16.0), "16x1xT4-16"),  # a node with this memory has no other GPU
        (on("T4-16", nodes=2), "8x1xT4-16"),
        (on("T4-16", gpus=3), "6xT4-16"),
    ],
)
def test_machines_are_doubled_until_an_option_fits(machines: Machines, larger: str) -> None:
    enough = found(machines)
    assert enough is not None and str(enough.machines) == larger and enough.option.fits
    assert enough.option.strategy.per_device_train_batch_size == 1
    assert enough.option.batching.accumulation == -(-1024 // enough.machines.gpus)


def test_workers_without_gpu_get_more_machines_of_theirs() -> None:
    cpu = Machines(1, 2, replace(accelerator_of("A100-40"), name=CPU), 79)
    enough = found(cpu)
    assert enough is not None and str(enough.machines) == "4x2xCPU"


def test_small_buffers_may_be_enough_on_fewer_machines() -> None:
    def with_room(gib: float) -> Sufficient | None:
        return found(Machines(1, 4, replace(accelerator_of("A100-80"), memory_gib=gib, host_gib=12.0)))

    def needed() -> Iterator[float]:
        for again in (False, True):
            batching = Batching(1024, 1, 128, 8)
            strategy = Strategy(gradient_checkpointing=again)
            yield option_of(strategy, strategy, batching, traced(strategy), on("A100-80", gpus=8)).memory.total / GIB

    least = min(needed())
    large, small = with_room(least + 0.05), with_room(least - 0.05)
    assert large is not None and large.machines.gpus == 8 and not large.option.strategy.has_small_buffers
    assert small is not None and small.machines.gpus == 8 and small.option.strategy.has_small_buffers


def test_what_the_spec_says_is_kept() -> None:
    written = Strategy(stage=1, per_device_train_batch_size=4)
    enough = found(on("A100-80", gpus=2), strategy=written, choosable=frozenset({"gradient_checkpointing"}))
    assert enough is not None and enough.option.strategy.stage == 1
    assert enough.option.strategy.per_device_train_batch_size == 4


def test_a_micro_batch_of_one_means_several_passes() -> None:
    once = Strategy(stage=1, per_device_train_batch_size=64, accumulates=False)
    enough = found(on("A100-80"), rows=64, strategy=once, choosable=frozenset({"per_device_train_batch_size"}))
    assert enough is not None and enough.option.strategy.accumulates


def test_no_more_machines_are_named_than_a_step_has_rows_or_help() -> None:
    assert found(on("T4-16"), rows=2) is None
    whole = Strategy(stage=1, gradient_checkpointing=True)  # the weights and their gradients are on every GPU
    assert found(on("T4-16"), strategy=whole, choosable=frozenset()) is None
