"""On how many workers a job can go on, and the job on so many of them. Pure functions of the spec."""

from __future__ import annotations

import itertools

from cluster.capacity.feasibility import largest_gang
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory
from jobs.errors import SpecError
from jobs.planning.batching import plan_batching
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec


def gang_of(spec: Spec | CommandSpec) -> Gang:
    resources = spec.resources
    return Gang(resources.num_workers, resources.cpus_per_worker, resources.gpus_per_worker, resources.accelerator_type)


def with_workers(spec: Spec, num_workers: int) -> Spec:
    """The spec on this number of workers and no other.

    Raises:
        SpecError: its batch cannot be spread over them.
    """
    resources = spec.resources.model_copy(update={"num_workers": num_workers, "min_workers": None})
    changed = spec.model_copy(update={"resources": resources})
    plan_batching(changed)
    return changed


def worker_numbers(spec: Spec) -> tuple[int, ...]:
    """From resources.min_workers to num_workers, ascending, those with which a step takes less time than with one less.

    A step takes as many forward passes as its rows need, so that 5 to 7 workers take no less time for 8 rows than 4 do.

    Raises:
        SpecError: what is computed would depend on the number.
    """
    least, most, train = spec.resources.min_workers, spec.resources.num_workers, spec.train
    if least is None:
        return (most,)
    if train.global_batch_size is None and train.global_batch_tokens is None:
        raise SpecError(
            f"resources.num_workers is from {least} to {most}, and the global batch would change with it: give "
            "train.global_batch_size, the rows of an optimizer step over all workers, however many there are"
        )
    if train.gradient_accumulation_steps is not None and least < most:
        raise SpecError(
            f"train.gradient_accumulation_steps is {train.gradient_accumulation_steps}, but resources.num_workers is "
            f"from {least} to {most}: leave it out, and it follows from the global batch"
        )
    micro_batches = -(-plan_batching(spec).rows // train.per_device_train_batch_size)
    passes = [-(-micro_batches // number) for number in range(least, most + 1)]
    pairs = itertools.pairwise(passes)
    fewer = (number for number, (one_less, these) in enumerate(pairs, least + 1) if these < one_less)
    return (least, *fewer)


def most_workers(spec: Spec, free: Inventory) -> int:
    """Of these numbers the largest that nodes have room for, or the least."""
    numbers, each = worker_numbers(spec), gang_of(spec)
    return max((number for number in numbers if number <= largest_gang(each, free)), default=numbers[0])
