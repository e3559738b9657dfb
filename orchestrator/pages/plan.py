"""Output of `fleetune plan`: memory, time, and the options that fit.

With `--accuracy`: predicted and measured memory and time of past runs.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

from cluster.text import compact, long_duration, many
from jobs.planning.accelerators import GIB
from jobs.planning.memory import Memory
from jobs.planning.step_time import EFFICIENCY
from jobs.planning.strategies import JobPlan, Option
from jobs.preflight.plan_text import (
    format_fields,
    format_missing,
    format_refusal,
    format_sharding,
    format_strategy,
    gib,
)
from jobs.run.run_plan import PlanCheck
from jobs.search.planned import Cost, PlannedTrials
from jobs.search.rules.spec_text import format_sweep
from orchestrator.pages.tables import columns, table

_PARTS: Final = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "optimizer_temporaries": "optimizer's temporaries",
    "activations": "activations",
    "logits": "logits",
    "evaluation": "logits of an evaluation",
    "gathered_buckets": "gathered parameters",
    "communication": "communication buffers",
    "reserve": "reserve",
    "program": "program",
    "kept": "freed memory that is kept",
    "checkpoint_copy": "copies of the state",
}
_HOST_PARTS: Final = {
    "host_program": "program",
    "host_parameters": "parameters",
    "host_gradients": "gradients",
    "host_optimizer_states": "optimizer states",
    "host_checkpoint_copy": "copies of the state",
}
_MOST_OPTIONS: Final = 12
_KEPT: Final = (
    "on CPUs, the time of an option depends on more than a plan knows. To take it, write its fields in the spec"
)
# (predicted, measured) of a run, by the name that programs read.
_PREDICTIONS: Final = {
    "memory": attrgetter("predicted_bytes", "measured_bytes"),
    "step": attrgetter("predicted_step_s", "measured_step_s"),
    "step_after_first_steps": attrgetter("first_steps_s", "measured_step_s"),
}
_TITLES: Final = {
    "memory": "memory",
    "step": "step time, planned",
    "step_after_first_steps": "step time, estimated after three steps",
}


def plan_page(plan: JobPlan, price: float | None = None, trials: PlannedTrials | None = None, title: str = "") -> str:
    """Format a plan.

    Args:
        price: of one GPU for one hour, or of one worker without GPU, in any currency.
        trials: given if those of a sweep are planned.
        title: what is planned, where a command plans several jobs.
    """
    best = plan.chosen
    shown = best or plan.nearest
    facts = _facts(plan, shown, price, "" if trials is None else "base.")
    blocks = [*filter(None, [title]), table(facts), _memory(shown, plan.machines.is_cpu), _options(plan)]
    if plan.note:
        blocks.append(f"note: {plan.note}")
    blocks.append(_verdict(plan, best, "it" if trials is None else "one gang"))
    if trials is not None:
        blocks.append(table(_sweep_facts(trials, plan, price)))
    return "\n\n".join(blocks)


def plan_json(plan: JobPlan, price: float | None = None, trials: PlannedTrials | None = None) -> dict[str, Any]:
    """Return a plan for programs, with bytes, seconds and hours. `trials`: given if those of a sweep are planned."""
    best = plan.chosen

    def needs(option: Option) -> dict[str, Any]:
        return {
            "fits": option.fits,
            "missing_bytes": option.missing,
            "missing_on_host_bytes": option.missing_on_host,
            "strategy": dataclasses.asdict(option.strategy),
            "gradient_accumulation_steps": option.batching.accumulation,
            "memory": {**_bytes(option.memory, _PARTS), "total": option.memory.total, "host": option.memory.host},
            "host_memory": _bytes(option.memory, _HOST_PARTS),
            "step": {**dataclasses.asdict(option.time), "seconds": option.time.seconds},
        }

    def of(option: Option) -> dict[str, Any]:
        hours = plan.hours(option)
        gpu_hours = None if hours is None else hours * plan.machines.gpus
        return {
            **needs(option),
            "hours": hours,
            "gpu_hours": gpu_hours,
            "cost": None if gpu_hours is None or price is None else gpu_hours * price,
        }

    more, cost = plan.sufficient, None if trials is None else trials.cost
    return {
        "machines": str(plan.machines),
        "precision": plan.precision,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "total_steps": plan.total_steps,
        "device_bytes": plan.spec_option.room,
        "host_bytes": plan.spec_option.host_room,
        "free": sorted(plan.choosable),
        "note": plan.note,
        "chosen": None if best is None else plan.options.index(best),
        "options": [of(option) for option in plan.options],
        "sufficient": None if more is None else {"machines": str(more.machines), **needs(more.option)},
        **({} if trials is None or cost is None else {"sweep": _sweep_json(trials, cost, plan, price)}),
    }


def _sweep_json(trials: PlannedTrials, cost: Cost, plan: JobPlan, price: float | None) -> dict[str, Any]:
    gpu_hours = _gpu_hours(trials, cost, plan)
    return {**dataclasses.asdict(cost), "gpu_hours": gpu_hours, "cost": None if price is None else gpu_hours * price}


def _gpu_hours(trials: PlannedTrials, cost: Cost, plan: JobPlan) -> float:
    """Return the GPU-hours of a sweep; without GPUs the hours of its workers, each of which may have several CPUs."""
    return cost.device_hours / (trials.sweep.base.resources.cpus_per_worker if plan.machines.is_cpu else 1)


def _bytes(memory: Memory, parts: Iterable[str]) -> dict[str, int]:
    return {part.removeprefix("host_"): getattr(memory, part) for part in parts}


def _sweep_facts(trials: PlannedTrials, plan: JobPlan, price: float | None) -> Iterator[tuple[str, str]]:
    """Describe a sweep and what its whole budget takes. `plan`: the plan of one gang."""
    yield "sweep", format_sweep(trials.sweep)
    yield "gangs", f"{many(trials.gangs, 'gang')} of {many(plan.machines.gpus, 'worker')} at once"
    if (cost := trials.cost) is None:
        return
    used = _gpu_hours(trials, cost, plan)
    money = "" if price is None else f", {used * price:,.2f} at {price:g} for an hour"
    hours = f"{used:,.1f} {plan.device}-hours{money}, at least {long_duration(3600 * cost.least_hours)}"
    yield "budget", f"{many(cost.steps, 'step')}, {compact(cost.tokens)} tokens in all: {hours}, without evaluations"
    if cost.limit_hours is not None and cost.least_hours > cost.limit_hours:
        at_least = ", and auto trains a whole run" if trials.sweep.algorithm == "auto" else ""
        why = f"a trial that has begun is trained to its next score{at_least}"
        yield "", f"longer than the {long_duration(3600 * cost.limit_hours)} of the budget: {why}"


def _facts(plan: JobPlan, option: Option, price: float | None, section: str) -> list[tuple[str, str]]:
    """`section`: the place of the job in the spec, such as `base.`."""
    batching, time, device = option.batching, option.time, plan.device
    idle = (batching.places - batching.rows) // batching.per_device if batching.accumulation == 1 else 0
    smaller = range(batching.per_device, 0, -1)
    better = next((each for each in smaller if _occupies_all(batching.rows, batching.num_workers, each)), 0)
    lower = f": lower {section}train.per_device_train_batch_size to {better}" if idle and better else ""
    no_rows = f"; {many(idle, 'worker')} of {batching.num_workers} without rows{lower}" if idle else ""
    facts = [
        ("machines", f"{plan.machines} ({option.room / GIB:.1f} GiB for each {device})"),
        ("model", f"{compact(plan.parameters)} parameters, {plan.precision}"),
        ("batch", f"{many(batching.rows, 'row')} of {many(plan.seq_len, 'token')} in a step{no_rows}"),
        ("step", f"{_seconds(time.seconds)}, {compact(time.tokens_per_s)} tokens/s, {_format_mfu(time.mfu)}"),
    ]
    hours = plan.hours(option)
    if hours is None:
        steps = f"--set {section}train.max_steps=1000 --set {section}train.num_train_epochs=null"
        unknown = f"not known yet: prepare the data (fleetune data prepare), or give {steps}"
        return [*facts, ("whole run", unknown)]
    used = hours * plan.machines.gpus
    cost = "" if price is None else f", {used * price:,.2f} at {price:g} for an hour"
    length = f"{many(plan.total_steps or 0, 'step')}, about {long_duration(3600 * hours)}"
    return [*facts, ("whole run", f"{length}, {used:,.1f} {device}-hours{cost}")]


def _format_mfu(mfu: float) -> str:
    return f"{100 * mfu:.0f} % MFU (computing at {100 * EFFICIENCY:.0f} % is assumed)"


def _occupies_all(rows: int, workers: int, micro_batch: int) -> bool:
    """Whether each worker gets rows in a step, whose micro-batches are filled one after another."""
    return -(-rows // micro_batch) >= workers


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _memory(option: Option, is_cpu: bool) -> str:
    where = "worker" if is_cpu else "GPU"
    memory = option.memory
    rows = [(name, gib(getattr(memory, part))) for part, name in _PARTS.items() if getattr(memory, part)]
    rows.append(("total", f"{gib(memory.total)} of {gib(option.room)}"))
    if memory.host:
        on_host = ((f"host: {name}", getattr(memory, part)) for part, name in _HOST_PARTS.items())
        rows += [(name, gib(size)) for name, size in on_host if size]
        rows.append(("host: total", f"{gib(memory.host)} of {gib(option.host_room)}"))
    return columns((f"GiB for each {where}", format_strategy(option.strategy)), rows)


def _options(plan: JobPlan) -> str:
    """Format the spec's option, and then each other strategy with its best micro-batch, the fastest first."""
    best = plan.chosen
    best_of: dict[object, Option] = {_without_micro_batch(plan.spec_option): plan.spec_option}
    for option in (*([] if best is None else [best]), *plan.options):
        known = best_of.setdefault(_without_micro_batch(option), option)
        if known not in (best, plan.spec_option) and _rank(option) < _rank(known):
            best_of[_without_micro_batch(option)] = option
    if best is not None:
        best_of[_without_micro_batch(best)] = best
    others = sorted(best_of.values(), key=_rank)
    shown = list(dict.fromkeys([plan.spec_option, *others]))[:_MOST_OPTIONS]
    head = ("", "strategy", "micro-batch", "passes", "GiB", "step", "tokens/s", "MFU", "fits")
    rows = [
        (
            "*" if option == best else "",
            format_sharding(option.strategy),
            str(option.strategy.per_device_train_batch_size),
            str(option.batching.accumulation),
            gib(option.memory.total),
            _seconds(option.time.seconds),
            compact(option.time.tokens_per_s),
            f"{100 * option.time.mfu:.0f} %",
            "yes" if option.fits else f"{format_missing(option)} too much",
        )
        for option in shown
    ]
    if len({option.strategy.per_device_train_batch_size for option in shown}) == 1:
        return columns(head, rows)
    each = "each row has its own best micro-batch: compare GiB only between equal ones"
    return f"{columns(head, rows)}\n{each}"


def _without_micro_batch(option: Option) -> object:
    """Return the strategy without its micro-batch, to compare strategies."""
    return dataclasses.replace(option.strategy, per_device_train_batch_size=0, accumulates=False)


def _rank(option: Option) -> tuple[bool, int, float]:
    return not option.fits, option.missing + option.missing_on_host, option.time.seconds


def _verdict(plan: JobPlan, best: Option | None, what: str) -> str:
    if best is None:
        return format_refusal(plan, what)
    given = {"resources": plan.resources, "train": best.changes}
    sections = [f"{name}:\n  " + format_fields(fields, "\n  ") for name, fields in given.items() if fields]
    if not sections and plan.keeps_slower:
        return f"the spec fits as it is, and is kept although another option is faster: {_KEPT}"
    if not sections:
        return "the spec fits as it is"
    fits = "the fastest option that fits" if best.changes else f"the spec fits on {plan.machines}"
    return "\n".join([f"{fits}; write in the spec:", *sections])


def format_plan(check: PlanCheck) -> str:
    """Describe one run's plan in a line."""
    memory = f"{'at most ' * check.is_bound}{gib(check.predicted_bytes)} GiB predicted"
    if check.measured_bytes is not None:
        error = _error(check, "memory")
        is_above = check.is_bound and check.measured_bytes > check.predicted_bytes
        said = " (above that bound, which leaves out what reads data and computes metrics)" if is_above else ""
        memory += f", {gib(check.measured_bytes)} measured" + (said if error is None else f" ({_signed(error)})")
    if check.predicted_step_s is None:
        return memory
    step = f"step {_known_seconds(check.predicted_step_s)} predicted"
    if check.measured_step_s is not None:
        step += f", {_known_seconds(check.measured_step_s)} measured ({_signed(_error(check, 'step'))})"
    return f"{memory}; {step}"


def accuracy_page(checks: Mapping[str, PlanCheck]) -> str:
    """Format a table of runs with a plan, with median and worst errors below it."""
    rows = [
        (
            name,
            check.machines,
            f"{'<= ' * check.is_bound}{gib(check.predicted_bytes)}",
            "" if check.measured_bytes is None else gib(check.measured_bytes),
            _signed(_error(check, "memory")),
            _known_seconds(check.predicted_step_s),
            _known_seconds(check.first_steps_s),
            _known_seconds(check.measured_step_s),
            _signed(_error(check, "step_after_first_steps")),
        )
        for name, check in checks.items()
    ]
    head = ("RUN", "MACHINES", "GIB", "MEASURED", "ERROR", "STEP", "AFTER 3", "MEASURED", "ERROR AFTER 3")
    found = accuracy_json(checks)
    lines = [
        f"{title}: median {100 * found[key]['median']:.1f} %, worst {100 * found[key]['worst']:.1f} % "
        f"of {many(found[key]['runs'], 'run')}"
        for key, title in _TITLES.items()
        if found[key]["runs"]
    ]
    if bounds := [check for check in checks.values() if check.is_bound and check.measured_bytes is not None]:
        kept = sum(check.predicted_bytes >= (check.measured_bytes or 0) for check in bounds)
        lines.append(f"bounds of small jobs: {kept} of {many(len(bounds), 'run')} took at most that")
    return "\n\n".join([columns(head, rows), "\n".join(lines) or "no run with a plan has completed a step yet"])


def accuracy_json(checks: Mapping[str, PlanCheck]) -> dict[str, Any]:
    """Return the runs, and a summary of their absolute relative errors."""
    found: dict[str, Any] = {"runs": {name: check.model_dump(mode="json") for name, check in checks.items()}}
    for what in _PREDICTIONS:
        errors = [abs(error) for check in checks.values() if (error := _error(check, what)) is not None]
        median = statistics.median(errors) if errors else None
        found[what] = {"runs": len(errors), "median": median, "worst": max(errors, default=None)}
    return found


def _error(check: PlanCheck, what: str) -> float | None:
    if check.is_bound and what == "memory":
        return None
    predicted, measured = _PREDICTIONS[what](check)
    return predicted / measured - 1 if predicted is not None and measured else None


def _signed(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %"


def _known_seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g} s"
