"""Finds the numbers of workers with which an elastic job can run. Pure functions of the spec."""

from __future__ import annotations

import itertools

from cluster.capacity.feasibility import largest_gang
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory
from cluster.errors import SpecError
from jobs.planning.batching import plan_batching
from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec


def gang_of(spec: Spec | CommandSpec) -> Gang:
    resources = spec.resources
    return Gang(resources.num_workers, resources.cpus_per_worker, resources.gpus_per_worker, resources.accelerator_type)


def with_workers(spec: Spec, num_workers: int) -> Spec:
    """Return the spec with exactly this number of workers.

    Raises:
        SpecError: the batch cannot be distributed over the workers.
    """
    changed = spec.with_value("resources.num_workers", num_workers).with_value("resources.min_workers", None)
    plan_batching(changed)
    return changed


def worker_numbers(spec: Spec) -> tuple[int, ...]:
    """List the useful numbers of workers from resources.min_workers to num_workers, ascending.

    A number is useful if a step then takes fewer forward passes than with one worker less. For example, 5 to 7 workers
    take no less time for 8 rows than 4 workers do.

    Raises:
        SpecError: the result of training would depend on the number of workers.
    """
    least, most, train = spec.resources.min_workers, spec.resources.num_workers, spec.train
    if least is None:
        return (most,)
    if train.global_batch_size is None and train.global_batch_tokens is None:
        raise SpecError(
            f"resources.num_workers is from {least} to {most}, and the global batch would change with it. Give "
            "train.global_batch_size, the rows of an optimizer step over all workers"
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
    """Return the largest useful number of workers for which there are free slots, or else the smallest number."""
    numbers, each = worker_numbers(spec), gang_of(spec)
    return max((number for number in numbers if number <= largest_gang(each, free)), default=numbers[0])
