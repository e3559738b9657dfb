"""Chooses between full fine-tuning, LoRA and prompt tuning by rules of thumb, and lists what would change the choice.

With little data, LoRA is about as accurate as full fine-tuning and costs less memory and compute. The more data there
is, the further a low rank falls behind: with 110,000 examples of 73 million tokens it does (arXiv 2405.09673). An
adapter is small, so many tasks can share one base model. A prompt is smaller still and as accurate as full fine-tuning
for models of about ten billion parameters, but not for small ones (arXiv 2104.08691).

Labelled data (dialogues, instructions, classes) is counted in examples: a long question has one answer too. Text
without labels is counted in tokens, because every token of it is learned, and a text may be a sentence or a book. Its
limits are the tokens of the experiment above, and a tenth of them, as 10,000 examples are a tenth of 100,000. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
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
FAR_LONGER: Final = 3.0  # times LoRA's time; by the operations alone, full fine-tuning takes 1.5 times as long
LARGE_MODEL: Final = 10_000_000_000  # parameters
NAMES: Final[dict[Method, str]] = {"full": "full fine-tuning", "lora": "LoRA", "prompt": "prompt tuning"}


@dataclass(frozen=True)
class Situation:
    """The facts that decide which method is better.

    Attributes:
        examples: training samples.
        tokens: of these samples, as they were prepared.
        is_labelled: whether the samples are examples of a task, with an answer or a class. Then `tokens` do not count;
            otherwise `examples` do not.
        parameters: of the base model.
        tasks: number of models to train from the same base model.
        possible: methods that this model allows.
        fitting: those of them that a plan for the machines fits.
        gpu_gib: memory of each GPU; None: the workers have none.
        goal: what decides if several methods are possible.
        offloads: whether full fine-tuning fits only with a part of its state on the host.
        times_lora: time of full fine-tuning in times of LoRA, according to their plans.
        lacking: what full fine-tuning lacks on the machines, in words; "" if it fits or is not possible.
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
    offloads: bool = False
    times_lora: float = 1.5
    lacking: str = ""

    @property
    def has_little(self) -> bool:
        return self.examples < FEW_EXAMPLES if self.is_labelled else self.tokens < FEW_TOKENS

    @property
    def has_much(self) -> bool:
        return self.examples >= MANY_EXAMPLES if self.is_labelled else self.tokens >= MANY_TOKENS

    @property
    def data(self) -> str:
        if self.is_labelled:
            return many(self.examples, "labelled example")
        return f"{many(self.examples, 'text')} with {compact(self.tokens)} tokens in all"

    @property
    def measure(self) -> str:
        """Say how the data is counted, and which limits there are."""
        limits = f"{self.limit(FEW_EXAMPLES, FEW_TOKENS)} and {self.limit(MANY_EXAMPLES, MANY_TOKENS)}"
        if self.is_labelled:
            return f"labelled data counts by its examples; limits: {limits}"
        return f"text without labels counts by its tokens, because a model learns each of them; limits: {limits}"

    def limit(self, examples: int, tokens: int) -> str:
        """Return the limit that counts for this data, in words."""
        return f"{examples:,} examples" if self.is_labelled else f"{compact(tokens)} tokens"

    @property
    def too_small(self) -> str | None:
        """Say why machines that full fine-tuning fits are too small for it; None: they are not."""
        if self.gpu_gib is None:
            return "the workers have no GPU"
        if self.gpu_gib < LARGE_GPU_GIB:
            return f"GPUs with {self.gpu_gib:.1f} GiB are not large (40 GB or more)"
        if self.offloads:
            return "it fits only with a part of its state on the host"
        return "it is far slower" if self.times_lora >= FAR_LONGER else None

    @property
    def duration(self) -> str:
        return f"full fine-tuning takes {self.times_lora:.1f} times as long as LoRA"

    def why_not(self, method: Method) -> str:
        """Say why a method that is not in `fitting` is not."""
        why = "does not fit these machines" if method in self.possible else "cannot be used for this job"
        lacks = f" ({self.lacking} too much)" if method == "full" and self.lacking else ""
        return f"{NAMES[method]} {why}{lacks}"


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
        few = now.limit(FEW_EXAMPLES, FEW_TOKENS)
        return Choice("lora", f"{now.data} are less than {few}, where an adapter is about as accurate")
    if now.too_small is not None:
        return Choice("lora", f"{now.data} would allow full fine-tuning, but {now.too_small}: {now.duration} here")
    if now.has_much:
        much, large = now.limit(MANY_EXAMPLES, MANY_TOKENS), f"the GPUs are large ({now.gpu_gib:.1f} GiB)"
        return Choice(
            "full", f"{now.data} are at least {much}, so a low rank falls behind; {large}, and {now.duration}"
        )
    few, much = now.limit(FEW_EXAMPLES, FEW_TOKENS), now.limit(MANY_EXAMPLES, MANY_TOKENS)
    between = f"{now.data} lie between {few} and {much}, so the goal decides: {now.goal}; {now.duration}"
    return Choice("full" if now.goal == "accuracy" else "lora", between)


def _amounts_of_data(now: Situation) -> Iterator[tuple[str, Method | None]]:
    """Yield intervals of the amount of data with the method for each, the smallest first."""
    few, most = (FEW_EXAMPLES, MANY_EXAMPLES) if now.is_labelled else (FEW_TOKENS, MANY_TOKENS)

    def method_from(amount: int) -> Method | None:
        return _decided(replace(now, examples=amount) if now.is_labelled else replace(now, tokens=amount)).method

    groups = [(method, min(starts)) for method, starts in groupby((1, few, most), method_from)]
    for (method, start), end in zip_longest(groups, [start for _, start in groups[1:]]):
        first = now.limit(start, start)
        if end is None:
            yield f"with {first} or more", method
        elif start == 1:
            yield f"with fewer than {now.limit(end, end)}", method
        else:
            yield f"with at least {first} and fewer than {now.limit(end, end)}", method


def _other_facts(now: Situation) -> Iterator[tuple[str, Situation]]:
    """Yield situations that differ in one fact other than the data, with a description of the difference."""
    yield "for one task", replace(now, tasks=1)
    yield f"for {MANY_TASKS} tasks or more", replace(now, tasks=MANY_TASKS)
    other: Goal = "cost" if now.goal == "accuracy" else "accuracy"
    yield f"with --goal {other}", replace(now, goal=other)
    if "full" in now.fitting and now.too_small is None:
        yield "on GPUs of less than 40 GB", replace(now, gpu_gib=0.0)
        yield "on machines with too little memory for full fine-tuning", replace(now, fitting=now.fitting - {"full"})
    else:
        large = replace(now, gpu_gib=LARGE_GPU_GIB, offloads=False, times_lora=1.0, fitting=now.possible)
        yield "on GPUs of 40 GB or more that full fine-tuning fits without offload", large
