"""Checks whether a run may resume with a spec: which fields may change, and whether a driver is still alive."""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from cluster.errors import InputError, SpecError
from cluster.local.supervisor import process_lives
from cluster.text import many
from jobs.planning import plan_batching
from jobs.run.events import ALIVE, DRIVER, this_driver
from jobs.run.find import export_command
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.checking.fields import section_model, spec_fields
from jobs.spec.data import Source, format_source
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage import files as storage
from jobs.storage.journal import Record, part_names, read_part, written_at_s

# Fields or whole sections about how a run is computed, saved and measured. All other fields decide what is computed.
MAY_CHANGE: Final = frozenset(
    {
        "name",
        "storage_path",
        "working_dir",
        "queue",
        "data.max_bad_fraction",
        "resources",
        "checkpoint",
        "eval",
        "remedies",
        "train.per_device_train_batch_size",
        "train.gradient_accumulation_steps",
        "train.global_batch_size",  # this and the next are compared by the rows that they give
        "train.global_batch_tokens",
        "train.gradient_checkpointing",
        "train.zero",
    }
)
# Paths: they may change, but not be added or dropped. Their content is compared when it is read.
MAY_MOVE: Final = frozenset({"model.path", "data.train", "data.eval", "eval.general"})
# Fields that the device decided before and that may be set now. The checkpoint's precision is compared on reading.
MAY_BE_SAID: Final = frozenset({"train.bf16"})
# Values of fields that are left out. Earlier releases wrote the attention kernel as sdpa if it was left out.
LEFT_OUT: Final = {"model.attn_implementation": "sdpa"}

_MOST_SHOWN = 500  # characters of a value in a message
# Seconds of silence after which a driver counts as dead. It writes every 60 s, and storage adds at most 30 s.
SILENT_S: Final = 150.0


def leaf_fields() -> list[str]:
    """List the dotted names of all fields that are not sections."""
    return [name for name, info in spec_fields(Spec).items() if section_model(info) is None]


def may_change(name: str) -> bool:
    parts = name.split(".")
    # The scores of lm-eval's tasks are compared with those before training.
    if name in MAY_MOVE or name.startswith("eval.lm_eval."):
        return False
    return any(".".join(parts[:depth]) in MAY_CHANGE for depth in range(1, len(parts) + 1))


def differences(before: Spec, now: Spec) -> list[str]:
    """List the changes that a resume does not allow, one a line; empty if the run may resume. Pure.

    Raises:
        SpecError: the batch of `now` contradicts itself.
    """
    return [*_changed_fields(before, now), *_changed_rows(before, now)]


def _changed_fields(before: Spec, now: Spec) -> Iterator[str]:
    for name in leaf_fields():
        old, new = (_value(spec, name) for spec in (before, now))
        moved = name in MAY_MOVE and _without_paths(old) == _without_paths(new)
        said = name in MAY_BE_SAID and old is None
        if old != new and not moved and not said and not may_change(name):
            yield f"{name}: {_shown(old)} -> {_shown(new)}"


def _value(spec: Spec, name: str) -> Any:
    value = functools.reduce(getattr, name.split("."), spec)
    return LEFT_OUT.get(name) if value is None else value


def _without_paths(value: Any) -> Any:
    """Return the properties of a path or of sources other than their location."""
    if isinstance(value, tuple):
        return tuple(source.model_copy(update={"path": ""}) for source in value)
    return value is None


def _changed_rows(before: Spec, now: Spec) -> Iterator[str]:
    old, new = plan_batching(before).rows, plan_batching(now).rows
    if old != new:
        against = ("gradient_accumulation_steps", "global_batch_tokens")
        drop = [f"train.{name}: null" for name in against if getattr(now.train, name) is not None]
        yield f"rows per optimizer step: {old} -> {new}; set {', '.join([f'train.global_batch_size: {old}', *drop])}"


def _in_short(text: str) -> str:
    """Shorten a text such as a chat template for a message; a path stays whole."""
    lines = text.splitlines()
    if len(lines) <= 1 and len(text) <= _MOST_SHOWN:
        return text
    return f"{lines[0][:_MOST_SHOWN]}... ({len(text):,} characters)"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(one, Source) for one in value):
        return ", ".join(map(format_source, value))
    return _in_short(value) if isinstance(value, str) else json.dumps(value)


def check_resumable(paths: JobPaths, now: Spec, clock: Callable[[], float] = time.time, *, alone: bool = False) -> Spec:
    """Check that a run may resume with the spec `now`, and return the spec that it had.

    Args:
        clock: seconds since 1970.
        alone: the caller knows that no driver has the run any more.

    Raises:
        SpecError: the new spec belongs to another run; the message lists all differences.
        InputError: there is no such run, it has succeeded, or it may still have a driver.
    """
    if not storage.exists(paths.spec):
        raise InputError(f"{paths.root} is not a run: there is no spec.json in it")
    outcome = read_outcome(paths)
    if outcome is None and not alone:
        check_not_driven(paths, clock())
    before = load_spec(paths.spec)
    if outcome is not None and outcome.status is Status.SUCCEEDED:
        raise InputError(
            f"run {paths.name} has succeeded after {many(outcome.step, 'step')}: nothing is left to do. To train "
            f"further, {_new_run(paths, before.method.kind)}"
        )
    changed = differences(before, now)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise SpecError(
            f"run {paths.name} cannot resume: the spec changes what is computed (old value -> new value):\n"
            f"{lines}\nA resume may change resources, checkpoint, eval, the micro-batch and train.zero. "
            f"Undo the listed changes, or {_new_run(paths, before.method.kind)}"
        )
    return before


def _new_run(paths: JobPaths, method: str) -> str:
    """Say how a new run starts from the model of a run. Pure."""
    if method == "prompt":
        return "start a new run from the base model: a prompt cannot be merged into it"
    made = paths.merged if method == "lora" else paths.model
    return f"start a new run from its model (`{export_command(paths, method)}`, then model.path: {made})"


def check_not_driven(paths: JobPaths, now_s: float) -> None:
    """Raise InputError if a driver may have the run: two drivers would overwrite each other's checkpoints."""
    fresh = [name for name in part_names(paths.events) if now_s - written_at_s(name) < SILENT_S]
    if not fresh:
        return
    driver, here = _driver_of(paths, fresh), this_driver()
    stop = f"fleetune stop {shlex.quote(paths.root)}"
    if driver is not None and (driver["host"], driver.get("machine")) == (here["host"], here["machine"]):
        if process_lives(driver["pid"]):
            raise InputError(
                f"run {paths.name} is still going on: process {driver['pid']} of this host drives it. "
                f"To stop it: {stop}"
            )
        return
    silent_s = now_s - written_at_s(fresh[-1])
    who = f"process {driver['pid']} on host {driver['host']}" if driver else "a process that did not say where it is"
    when = f"{silent_s:.0f} s ago"
    if silent_s < 0:
        when = f"{-silent_s:.0f} s from now, because the clock of its host is ahead of this host's"
    raise InputError(
        f"run {paths.name} may still be going on: it was driven by {who}, and wrote {when}. To stop it: "
        f"{stop}. If that process is dead, the run may go on in {SILENT_S - silent_s:.0f} s"
    )


def _driver_of(paths: JobPaths, parts: list[str]) -> Record | None:
    """Return host, machine and process from the newest sign of life in these parts of the events."""
    for name in reversed(parts):
        if not name.endswith(f"-{DRIVER}.jsonl"):
            continue
        for record in reversed(read_part(paths.events, name)):
            data: Record = record.get("data", {})
            if record.get("kind") == ALIVE and "pid" in data:
                return data
    return None
