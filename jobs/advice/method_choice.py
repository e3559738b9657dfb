"""Chooses between full fine-tuning and LoRA by rules of thumb, and lists what would change the choice. Pure.

With few examples, LoRA is about as accurate as full fine-tuning and costs less memory and compute. The more data there
is, the further a low rank falls behind (arXiv 2405.09673). An adapter is small, so many tasks can share one base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from cluster.text import many

Method = Literal["full", "lora"]
Goal = Literal["accuracy", "cost"]

FEW_EXAMPLES: Final = 10_000
MANY_EXAMPLES: Final = 100_000
MANY_TASKS: Final = 3
LARGE_GPU_GIB: Final = 38.0  # memory that programs can use on a GPU of 40 GB


@dataclass(frozen=True)
class Situation:
    """The facts that decide which method is better.

    Attributes:
        examples: training samples.
        tasks: number of models to train from the same base model.
        full_fits, lora_fits: whether a plan for the machines exists.
        gpu_gib: memory of each GPU; None: the workers have none.
        goal: what decides if both methods are possible.
    """

    examples: int
    tasks: int
    full_fits: bool
    lora_fits: bool
    gpu_gib: float | None
    goal: Goal


@dataclass(frozen=True)
class Choice:
    """The method, the reason, and the situations in which another method would have been chosen."""

    method: Method | None  # None: neither fits
    why: str
    changes: tuple[str, ...] = ()


def choose(situation: Situation) -> Choice:
    """Choose the method for a situation, and list what would change the choice."""
    found = _decided(situation)
    changes = tuple(
        f"{said}: {_format_method(other.method)}"
        for said, changed in _others(situation)
        if (other := _decided(changed)).method != found.method
    )
    return replace(found, changes=changes)


def _decided(now: Situation) -> Choice:
    if not now.full_fits:
        if now.lora_fits:
            return Choice("lora", "full fine-tuning does not fit these machines")
        return Choice(None, "neither method fits these machines")
    if now.tasks >= MANY_TASKS:
        return Choice("lora", f"{now.tasks} tasks can share one base model, each with a small adapter")
    if now.examples < FEW_EXAMPLES:
        said = f"{many(now.examples, 'example')} are fewer than {FEW_EXAMPLES:,}"
        return Choice("lora", f"{said}, where an adapter is about as accurate")
    is_large = now.gpu_gib is not None and now.gpu_gib >= LARGE_GPU_GIB
    if now.examples >= MANY_EXAMPLES and is_large:
        said = f"{now.examples:,} examples are at least {MANY_EXAMPLES:,}, and the GPUs are large"
        return Choice("full", f"{said}: a low rank falls behind")
    between = f"with {now.examples:,} examples both methods are possible, and the goal is {now.goal}"
    return Choice("full" if now.goal == "accuracy" else "lora", between)


def _others(now: Situation) -> Iterator[tuple[str, Situation]]:
    """Yield situations that differ in one fact, with a description of the difference."""
    yield f"with {FEW_EXAMPLES:,} examples", replace(now, examples=FEW_EXAMPLES)
    yield f"with {MANY_EXAMPLES:,} examples", replace(now, examples=MANY_EXAMPLES)
    yield f"with fewer than {FEW_EXAMPLES:,} examples", replace(now, examples=FEW_EXAMPLES - 1)
    yield "for one task", replace(now, tasks=1)
    yield f"for {MANY_TASKS} tasks or more", replace(now, tasks=MANY_TASKS)
    other: Goal = "cost" if now.goal == "accuracy" else "accuracy"
    yield f"with --goal {other}", replace(now, goal=other)
    yield "on machines with enough memory for full fine-tuning", replace(now, full_fits=True)
    yield "on machines with too little memory for full fine-tuning", replace(now, full_fits=False)


def _format_method(method: Method | None) -> str:
    return "full fine-tuning" if method == "full" else "LoRA" if method == "lora" else "neither"
