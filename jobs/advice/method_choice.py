"""Chooses between full fine-tuning, LoRA and prompt tuning by rules of thumb, and lists what would change the choice.

With little data, LoRA is about as accurate as full fine-tuning and costs less memory and compute. The more data there
is, the further a low rank falls behind: with 110,000 examples of 73 million tokens it does (arXiv 2405.09673). An
adapter is small, so many tasks can share one base model. A prompt is smaller still and as accurate as full fine-tuning
for models of about ten billion parameters, but not for small ones (arXiv 2104.08691). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from math import ceil
from typing import Final, Literal

from cluster.text import compact, many
from jobs.spec.method import MethodName

Method = MethodName
Goal = Literal["accuracy", "cost"]

FEW_EXAMPLES: Final = 10_000
MANY_EXAMPLES: Final = 100_000
FEW_TOKENS: Final = 7_300_000
MANY_TOKENS: Final = 73_000_000
MANY_TASKS: Final = 3
LARGE_GPU_GIB: Final = 38.0  # memory that programs can use on a GPU of 40 GB
LARGE_MODEL: Final = 10_000_000_000  # parameters
NAMES: Final[dict[Method, str]] = {"full": "full fine-tuning", "lora": "LoRA", "prompt": "prompt tuning"}


@dataclass(frozen=True)
class Situation:
    """The facts that decide which method is better.

    Attributes:
        examples: training samples.
        tokens: of these samples, as they were prepared.
        is_labelled: whether each sample has one label. Then tokens do not count, because a long text has one label too.
        parameters: of the base model.
        tasks: number of models to train from the same base model.
        possible: methods that this model allows.
        fitting: those of them that a plan for the machines fits.
        gpu_gib: memory of each GPU; None: the workers have none.
        goal: what decides if several methods are possible.
    """

    examples: int
    tokens: int
    is_labelled: bool
    parameters: int
    tasks: int
    possible: frozenset[Method]
    fitting: frozenset[Method]
    gpu_gib: float | None
    goal: Goal

    @property
    def has_little(self) -> bool:
        return self.examples < FEW_EXAMPLES and (self.is_labelled or self.tokens < FEW_TOKENS)

    @property
    def has_much(self) -> bool:
        return self.examples >= MANY_EXAMPLES or (not self.is_labelled and self.tokens >= MANY_TOKENS)

    @property
    def data(self) -> str:
        if self.is_labelled:
            return many(self.examples, "labelled example")
        return f"{many(self.examples, 'example')} with {compact(self.tokens)} tokens in all"

    def why_not(self, method: Method) -> str:
        """Say why a method that is not in `fitting` is not."""
        why = "does not fit these machines" if method in self.possible else "cannot be used for this job"
        return f"{NAMES[method]} {why}"


@dataclass(frozen=True)
class Choice:
    """The method, the reason, and the situations in which another method would have been chosen."""

    method: Method | None  # None: none fits
    why: str
    changes: tuple[str, ...] = ()


def choose(situation: Situation) -> Choice:
    """Choose the method for a situation, and list what would change the choice."""
    found = _decided(situation)
    others = ((said, _decided(other).method) for said, other in _other_facts(situation))
    changes = tuple(
        f"{said}: {'none' if method is None else NAMES[method]}"
        for said, method in (*_amounts_of_data(situation), *others)
        if method != found.method
    )
    return replace(found, changes=changes)


def _decided(now: Situation) -> Choice:
    if len(now.fitting) < 2:
        only = next(iter(now.fitting), None)
        others = [now.why_not(method) for method in NAMES if method not in now.fitting]
        return Choice(only, "; ".join(others) if only else "no method fits these machines")
    if now.tasks >= MANY_TASKS and "lora" in now.fitting:
        if now.goal == "cost" and now.parameters >= LARGE_MODEL and "prompt" in now.fitting:
            large = f"of {compact(LARGE_MODEL)} parameters or more"
            return Choice("prompt", f"{now.tasks} tasks can share one base model {large}, each with a prompt")
        return Choice("lora", f"{now.tasks} tasks can share one base model, each with a small adapter")
    if "full" not in now.fitting:
        return Choice("lora", now.why_not("full"))
    if "lora" not in now.fitting:
        return Choice("full", now.why_not("lora"))
    if now.has_little:
        limits = f"{FEW_EXAMPLES:,} examples" + ("" if now.is_labelled else f" and {compact(FEW_TOKENS)} tokens")
        return Choice("lora", f"{now.data} are less than {limits}, where an adapter is about as accurate")
    is_large = now.gpu_gib is not None and now.gpu_gib >= LARGE_GPU_GIB
    if now.has_much and is_large:
        limits = f"{MANY_EXAMPLES:,} examples" + ("" if now.is_labelled else f" or {compact(MANY_TOKENS)} tokens")
        return Choice("full", f"{now.data} are at least {limits}, and the GPUs are large: a low rank falls behind")
    between = f"{now.data} allow both full fine-tuning and LoRA, and the goal is {now.goal}"
    return Choice("full" if now.goal == "accuracy" else "lora", between)


def _amounts_of_data(now: Situation) -> Iterator[tuple[str, Method | None]]:
    """Yield intervals of the number of examples with the method for each, fewest first."""
    each = max(now.tokens / max(now.examples, 1), 1.0)
    few, most = FEW_EXAMPLES, MANY_EXAMPLES
    if not now.is_labelled:
        few, most = min(few, ceil(FEW_TOKENS / each)), min(most, ceil(MANY_TOKENS / each))

    def method_from(examples: int) -> Method | None:
        return _decided(replace(now, examples=examples, tokens=round(each * examples))).method

    groups = [(method, min(starts)) for method, starts in groupby(sorted({1, few, most}), method_from)]
    for (method, start), end in zip_longest(groups, [start for _, start in groups[1:]]):
        if end is None:
            yield f"with {start:,} such examples or more", method
        elif start == 1:
            yield f"with fewer than {end:,} such examples", method
        else:
            yield f"with {start:,} to {end - 1:,} such examples", method


def _other_facts(now: Situation) -> Iterator[tuple[str, Situation]]:
    """Yield situations that differ in one fact other than the data, with a description of the difference."""
    yield "for one task", replace(now, tasks=1)
    yield f"for {MANY_TASKS} tasks or more", replace(now, tasks=MANY_TASKS)
    other: Goal = "cost" if now.goal == "accuracy" else "accuracy"
    yield f"with --goal {other}", replace(now, goal=other)
    if now.gpu_gib is not None:
        if now.gpu_gib >= LARGE_GPU_GIB:
            yield "on GPUs of less than 40 GB", replace(now, gpu_gib=0.0)
        else:
            yield "on GPUs of 40 GB or more", replace(now, gpu_gib=LARGE_GPU_GIB)
    if "full" in now.fitting:
        yield "on machines with too little memory for full fine-tuning", replace(now, fitting=now.fitting - {"full"})
    else:
        yield "on machines with enough memory for full fine-tuning", replace(now, fitting=now.possible)
