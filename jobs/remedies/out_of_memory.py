"""The ladder of changes after a run ran out of memory. Each keeps the global batch, the order of rows and the seeds.

A rung is climbed as often as it changes something. Every change lowers a number or sets a field that was not set, so
the ladder is finite. `jobs.drivers.finetune.memory_remedy` acts on the decisions. `advice` is for users.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from jobs.planning import plan_batching
from jobs.run.remedies import Remedy
from jobs.spec.finetune import Spec


class Where(StrEnum):
    """The activity of the run when it ran out of memory."""

    LOADING = "loading"  # before the first forward pass on rows
    TRAINING = "training"  # a forward or backward pass
    UPDATE = "the update of the weights"
    EVALUATION = "evaluation"
    EXPORT = "export"


class Rung(StrEnum):
    EVAL_BATCH = "evaluation batch"
    MICRO_BATCH = "micro-batch"
    CHECKPOINTING = "gradient checkpointing"
    OFFLOAD_OPTIMIZER = "offload of the optimizer"
    OFFLOAD_PARAMETERS = "offload of the parameters"


FIELDS: Final = {
    Rung.EVAL_BATCH: "eval.per_device_eval_batch_size",
    Rung.MICRO_BATCH: "train.per_device_train_batch_size",
    Rung.CHECKPOINTING: "train.gradient_checkpointing",
    Rung.OFFLOAD_OPTIMIZER: "train.zero.offload_optimizer",
    Rung.OFFLOAD_PARAMETERS: "train.zero.offload_param",
}


@dataclass(frozen=True)
class Shortage:
    """A lack of memory.

    Attributes:
        of_host: the host's memory ran out, not a GPU's.
        eval_rows: rows of the forward pass, if an evaluation ran out; they may be fewer than the spec allows.
    """

    where: Where
    of_host: bool
    eval_rows: int | None = None


@dataclass(frozen=True)
class Change:
    rung: Rung
    before: Any
    after: Any

    @property
    def field(self) -> str:
        return FIELDS[self.rung]

    def __str__(self) -> str:
        return f"{self.field}: {json.dumps(self.after)} instead of {json.dumps(self.before)}"


def next_change(spec: Spec, shortage: Shortage, *, checkpointing: bool = True) -> Change | None:
    """Return the next change that can help; None if none is left.

    On GPU workers no change helps if the host's memory is short: offload would need more of it.

    Args:
        spec: with the changes so far.
        checkpointing: the model type supports gradient checkpointing.
    """
    return next(_changes(spec, shortage, checkpointing), None)


def _changes(spec: Spec, shortage: Shortage, checkpointing: bool) -> Iterator[Change]:
    """Yield the changes that can help, the next one first. On CPU workers there is nothing to offload from.

    A smaller micro-batch frees activations, and there are none in an update. An evaluation does not use the states of
    the optimizer, so their offload frees memory for it.
    """
    on_gpus, train = spec.resources.gpus_per_worker > 0, spec.train
    if on_gpus and shortage.of_host:
        return
    if shortage.where is Where.UPDATE:
        yield from _offloads(spec)
    if shortage.where is Where.EVALUATION:
        allowed = spec.eval.per_device_eval_batch_size
        if smaller := min(allowed, shortage.eval_rows or allowed) // 2:
            yield Change(Rung.EVAL_BATCH, allowed, smaller)
    if shortage.where in (Where.TRAINING, Where.UPDATE):
        if (rows := train.per_device_train_batch_size) > 1:
            yield Change(Rung.MICRO_BATCH, rows, rows // 2)
        if checkpointing and not train.gradient_checkpointing:
            yield Change(Rung.CHECKPOINTING, False, True)
    yield from _offloads(spec)


def _offloads(spec: Spec) -> Iterator[Change]:
    zero = spec.train.zero
    if spec.resources.gpus_per_worker and zero.offload_optimizer is None:
        yield Change(Rung.OFFLOAD_OPTIMIZER, None, "cpu")
    if spec.resources.gpus_per_worker and zero.stage == 3 and zero.offload_param is None:
        yield Change(Rung.OFFLOAD_PARAMETERS, None, "cpu")


def with_change(spec: Spec, change: Change) -> Spec:
    """Return the spec with the change, and with the same global batch."""
    if change.rung is Rung.MICRO_BATCH:
        spec = with_global_batch(spec)
    return spec.with_value(change.field, change.after)


def fields_of_batch(spec: Spec, change: Change) -> dict[str, Any]:
    """Return the other fields that `with_change` sets, by dotted name: those that keep the global batch."""
    if change.rung is not Rung.MICRO_BATCH:
        return {}
    after = with_global_batch(spec).train
    names = ("global_batch_size", "gradient_accumulation_steps")
    return {f"train.{name}": new for name in names if (new := getattr(after, name)) != getattr(spec.train, name)}


def with_global_batch(spec: Spec) -> Spec:
    """Return the spec with its global batch given and its accumulation derived."""
    if not (spec.train.global_batch_size or spec.train.global_batch_tokens):
        spec = spec.with_value("train.global_batch_size", plan_batching(spec).rows)
    return spec.with_value("train.gradient_accumulation_steps", None)


def with_remedies(spec: Spec, remedies: Sequence[Remedy]) -> tuple[Spec, tuple[Change, ...]]:
    """Apply the changes of earlier attempts, and return the spec and the changes that were applied.

    A change is applied if its field still has the value that was too much. If a user has changed the field, the user's
    value counts. On another kind of workers no change is applied, because their memory may be larger.
    """
    applied: dict[Rung, Change] = {}
    for one in remedies:
        same_workers = (one.gpus_per_worker, one.accelerator_type) == worker_kind(spec)
        rung = next((rung for rung, field in FIELDS.items() if field == one.field), None)
        if rung is None or not same_workers or operator.attrgetter(one.field)(spec) != one.before:
            continue
        spec = with_change(spec, Change(rung, one.before, one.after))
        first = applied.get(rung)
        applied[rung] = Change(rung, one.before if first is None else first.before, one.after)
    return spec, tuple(applied.values())


def worker_kind(spec: Spec) -> tuple[int, str | None]:
    """Return the kind of the workers, which decides how much memory each has."""
    return spec.resources.gpus_per_worker, spec.resources.accelerator_type


def remedies_in(remedies: Sequence[Remedy], where: Where) -> list[Remedy]:
    """Return the changes that were made after a lack of memory in the same part of the run. A step is one part."""
    of_a_step = (Where.TRAINING, Where.UPDATE)
    places = of_a_step if where in of_a_step else (where,)
    return [one for one in remedies if one.where in places]


def format_tried(remedies: Sequence[Remedy]) -> str:
    """List the changes that did not suffice: `train.per_device_train_batch_size 2, 1`; empty if there were none."""
    values: dict[str, list[str]] = {}
    for one in remedies:
        values.setdefault(one.field, []).append(json.dumps(one.after))
    return "; ".join(f"{field} {', '.join(each)}" for field, each in values.items())


def advice(spec: Spec, *, checkpointing: bool = True) -> str:
    """Return two or three short sentences that name the fields that would help, with their present values.

    `checkpointing` is as for `next_change`.
    """
    train, on_gpu = spec.train, spec.resources.gpus_per_worker > 0
    lower = [
        *_above_one("train.per_device_train_batch_size", train.per_device_train_batch_size),
        *_above_one("eval.per_device_eval_batch_size", spec.eval.per_device_eval_batch_size if spec.evaluates else 1),
        f"data.seq_len ({spec.data.seq_len})",
    ]
    less = ["train.gradient_checkpointing: true"] if checkpointing and not train.gradient_checkpointing else []
    if train.zero.stage < 3:
        less.append("train.zero.stage: 3")
    if on_gpu and train.zero.offload_optimizer is None:
        less.append("train.zero.offload_optimizer: cpu")
    more = "" if on_gpu else ", or give each worker more memory"
    return (
        f"Lower {_listed(lower)}.{f' Or set {_listed(less)}.' if less else ''} "
        f"Or use more workers than {spec.resources.num_workers}{more}."
    )


def _above_one(name: str, value: int) -> list[str]:
    return [f"{name} ({value})"] if value > 1 else []


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
