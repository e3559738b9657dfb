"""The page of `fleetune plan`: memory, time and the strategies that fit."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from cluster.text import compact, long_duration, many
from jobs.planning.accelerators import GIB
from jobs.planning.job_plan import JobPlan
from jobs.planning.memory import Strategy
from jobs.planning.strategies import Option
from orchestrator.pages.show import table
from orchestrator.pages.tables import columns

_PARTS: Final = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "optimizer_temporaries": "optimizer's temporaries",
    "activations": "activations",
    "logits": "logits",
    "gathered_buckets": "gathered parameters",
    "communication": "communication buffers",
    "reserve": "reserve",
    "program": "program",
    "checkpoint_copy": "copy for checkpoints",
}
_MOST_OPTIONS: Final = 12


def plan_page(plan: JobPlan, price: float | None = None) -> str:
    """Format a plan.

    Args:
        price: of one GPU for one hour, in any currency.
    """
    best = plan.chosen
    shown = best or plan.nearest
    blocks = [table(_facts(plan, shown, price)), _memory(shown, plan.machines.is_cpu), _options(plan)]
    if plan.note:
        blocks.append(f"note: {plan.note}")
    return "\n\n".join([*blocks, _verdict(plan, best)])


def plan_json(plan: JobPlan, price: float | None = None) -> dict[str, Any]:
    """Return a plan for programs. Sizes are bytes, times are seconds."""
    best = plan.chosen

    def of(option: Option) -> dict[str, Any]:
        hours = plan.hours(option)
        gpu_hours = None if hours is None else hours * plan.machines.gpus
        return {
            "fits": option.fits,
            "missing_bytes": option.missing,
            "missing_on_host_bytes": option.missing_on_host,
            "strategy": dataclasses.asdict(option.strategy),
            "gradient_accumulation_steps": option.batching.accumulation,
            "memory": {**dataclasses.asdict(option.memory), "total": option.memory.total},
            "step": {**dataclasses.asdict(option.time), "seconds": option.time.seconds},
            "hours": hours,
            "gpu_hours": gpu_hours,
            "cost": None if gpu_hours is None or price is None else gpu_hours * price,
        }

    return {
        "machines": str(plan.machines),
        "precision": plan.precision,
        "parameters": plan.parameters,
        "total_steps": plan.total_steps,
        "device_bytes": plan.written.room,
        "host_bytes": plan.written.host_room,
        "free": sorted(plan.free),
        "note": plan.note,
        "chosen": None if best is None else plan.options.index(best),
        "options": [of(option) for option in plan.options],
    }


def _facts(plan: JobPlan, option: Option, price: float | None) -> list[tuple[str, str]]:
    rows, time, device = option.batching.rows, option.time, plan.device
    facts = [
        ("machines", f"{plan.machines} ({option.room / GIB:.1f} GiB for each {device})"),
        ("model", f"{compact(plan.parameters)} parameters, {plan.precision}"),
        ("batch", f"{rows:,} rows of {plan.seq_len:,} tokens in a step"),
        ("step", f"{_seconds(time.seconds)}, {compact(time.tokens_per_s)} tokens/s, {100 * time.mfu:.0f} % MFU"),
    ]
    hours = plan.hours(option)
    if hours is None:
        unknown = "not known yet: prepare the data (fleetune data prepare), or give train.max_steps"
        return [*facts, ("whole run", unknown)]
    used = hours * plan.machines.gpus
    cost = "" if price is None else f", {used * price:,.2f} at {price:g} each"
    length = f"{many(plan.total_steps or 0, 'step')}, about {long_duration(3600 * hours)}"
    return [*facts, ("whole run", f"{length}, {used:,.1f} {device}-hours{cost}")]


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def _memory(option: Option, is_cpu: bool) -> str:
    where = "worker" if is_cpu else "GPU"
    memory = option.memory
    rows = [(name, _gib(getattr(memory, part))) for part, name in _PARTS.items() if getattr(memory, part)]
    rows.append(("in all", f"{_gib(memory.total)} of {_gib(option.room)}"))
    if memory.host:
        rows.append(("host memory", f"{_gib(memory.host)} of {_gib(option.host_room)}"))
    return columns((f"GiB for each {where}", _strategy(option.strategy)), rows)


def _strategy(strategy: Strategy) -> str:
    words = [f"ZeRO {strategy.stage}"]
    if strategy.offload_optimizer:
        words.append("optimizer and parameters on the host" if strategy.offload_param else "optimizer on the host")
    if strategy.gradient_checkpointing:
        words.append("checkpointing")
    return ", ".join([*words, f"micro-batch {strategy.per_device_train_batch_size}"])


def _options(plan: JobPlan) -> str:
    """Format the options: the spec's and the best micro-batch of each of the other strategies, the fastest first."""
    best = plan.chosen
    ways: dict[object, Option] = {_way(plan.written): plan.written}
    for option in (*([] if best is None else [best]), *plan.options):
        known = ways.setdefault(_way(option), option)
        if known not in (best, plan.written) and _rank(option) < _rank(known):
            ways[_way(option)] = option
    if best is not None:
        ways[_way(best)] = best
    others = sorted(ways.values(), key=_rank)
    shown = list(dict.fromkeys([plan.written, *others]))[:_MOST_OPTIONS]
    head = ("", "strategy", "passes", "GiB", "step", "tokens/s", "MFU", "fits")
    return columns(
        head,
        [
            (
                "*" if option == best else "",
                _strategy(option.strategy),
                str(option.batching.accumulation),
                _gib(option.memory.total),
                _seconds(option.time.seconds),
                compact(option.time.tokens_per_s),
                f"{100 * option.time.mfu:.0f} %",
                _fits(option),
            )
            for option in shown
        ],
    )


def _fits(option: Option) -> str:
    return "yes" if option.fits else f"{_missing(option)} too much"


def _missing(option: Option) -> str:
    parts = [f"{_gib(option.missing)} GiB"] if option.missing else []
    parts += [f"{_gib(option.missing_on_host)} GiB of host memory"] if option.missing_on_host else []
    return " and ".join(parts)


def _way(option: Option) -> object:
    """Return what distinguishes strategies that differ in more than the micro-batch."""
    return dataclasses.replace(option.strategy, per_device_train_batch_size=0, accumulates=False)


def _rank(option: Option) -> tuple[bool, int, float]:
    return not option.fits, option.missing + option.missing_on_host, option.time.seconds


def _verdict(plan: JobPlan, best: Option | None) -> str:
    if best is None:
        near = plan.nearest
        return (
            f"does not fit: the nearest way ({_strategy(near.strategy)}) lacks {_missing(near)} for each "
            f"{plan.device}. Use more of them, or ones with more memory, or lower data.seq_len ({plan.seq_len:,})"
        )
    if not best.changes:
        return "fits as it is written"
    return f"fastest that fits: write\n{_fields(best)}"


def _fields(option: Option) -> str:
    """Format the changed fields as they stand in a spec."""
    strategy, lines = option.strategy, ["train:"]
    if "per_device_train_batch_size" in option.changes:
        lines.append(f"  per_device_train_batch_size: {strategy.per_device_train_batch_size}")
    if "gradient_checkpointing" in option.changes:
        lines.append(f"  gradient_checkpointing: {str(strategy.gradient_checkpointing).lower()}")
    if "zero" in option.changes:
        offload = "".join(
            f", {name}: cpu" for name in ("offload_optimizer", "offload_param") if getattr(strategy, name)
        )
        lines.append(f"  zero: {{stage: {strategy.stage}{offload}}}")
    return "\n".join(lines)
