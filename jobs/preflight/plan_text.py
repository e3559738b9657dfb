"""Describes the options of a plan for people. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.planning.accelerators import GIB
from jobs.planning.strategies import JobPlan, Option
from jobs.planning.strategy import Strategy


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def format_strategy(strategy: Strategy) -> str:
    return f"{format_sharding(strategy)}, micro-batch {strategy.per_device_train_batch_size}"


def format_sharding(strategy: Strategy) -> str:
    """Describe a strategy without its micro-batch."""
    words = [f"ZeRO {strategy.stage}"]
    offloaded = ["optimizer"] * strategy.offload_optimizer + ["parameters"] * strategy.offload_param
    if offloaded:
        words.append(f"{' and '.join(offloaded)} on the host")
    if strategy.gradient_checkpointing:
        words.append("checkpointing")
    if strategy.has_small_buffers:
        words.append("small buffers")
    return ", ".join(words)


def format_missing(option: Option) -> str:
    parts = [f"{gib(option.missing)} GiB"] if option.missing else []
    parts += [f"{gib(option.missing_on_host)} GiB of host memory"] if option.missing_on_host else []
    return " and ".join(parts)


def format_refusal(plan: JobPlan, what: str = "it") -> str:
    """Say that no option fits, how much memory is missing, and what to change. `what`: it, or one gang of a sweep."""
    near = plan.nearest
    said = (
        f"does not fit: the option that lacks least ({format_strategy(near.strategy)}) needs {format_needed(near)} "
        f"for each {plan.device}. "
    )
    if plan.rewritten is not None:
        changes = format_fields(plan.rewritten.changes)
        said += f"With {changes}, {what} would fit: {gib(plan.rewritten.memory.total)} GiB for each {plan.device}. "
    if plan.sufficient is not None:
        machines, option = plan.sufficient
        used = f"{gib(option.memory.total)} GiB for each {plan.device}"
        rows = option.batching.rows
        batch = "" if rows == near.batching.rows else f", with {rows} rows in a step"
        said += f"On {machines}, {what} would fit ({format_strategy(option.strategy)}{batch}): {used}. "
    memory, help_ = near.memory, list[str]()
    states, missing = memory.host_gradients + memory.host_optimizer_states, near.missing_on_host
    if near.missing:  # memory of a host depends on neither rows nor tokens
        states = memory.gradients + memory.optimizer_states + memory.optimizer_temporaries
        missing = near.missing
        if memory.activations + memory.logits >= missing:
            if (rows := near.strategy.per_device_train_batch_size) > 1:
                help_.append(f"a smaller train.per_device_train_batch_size ({rows})")
            help_.append(f"a smaller data.seq_len ({plan.seq_len:,})")
            if plan.can_checkpoint and not near.strategy.gradient_checkpointing:
                help_.append("train.gradient_checkpointing: true")
        if memory.evaluation >= missing:
            help_.append(f"a smaller eval.per_device_eval_batch_size ({near.strategy.per_device_eval_batch_size})")
        if near.strategy.stage < 3:
            help_.append("train.zero.stage: 3")
        by_offload = [option for option in plan.options if not option.missing]
        if by_offload:  # what lacks least in all may not be what lacks memory of hosts alone
            least = min(by_offload, key=lambda option: option.missing_on_host)
            more = f"{gib(least.missing_on_host)} GiB more of host memory for each {plan.device}"
            help_.append(f"{more} ({format_strategy(least.strategy)})")
    if plan.trained == plan.parameters and states >= missing:
        help_.append("method: lora")
    if plan.sufficient is not None:
        help_.append(f"more {plan.device}s")
    larger = f"{f'{plan.device}s' if near.missing else 'hosts'} with more memory"
    return said + (f"These would help: {', '.join(help_)}, or {larger}" if help_ else f"What would help: {larger}")


def format_needed(option: Option) -> str:
    """Format needed and available memory, of the kind (GPU or host) that does not suffice."""
    parts = [f"{gib(option.memory.total)} of {gib(option.room)} GiB"] if option.missing else []
    if option.missing_on_host:
        parts.append(f"{gib(option.memory.host)} of {gib(option.host_room)} GiB of host memory")
    return " and ".join(parts)


def format_fields(fields: Mapping[str, Any], between: str = ", ") -> str:
    """Format fields as they stand in a spec."""
    return between.join(f"{name}: {_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{format_fields(value)}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
