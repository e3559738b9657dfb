"""Output of `fleetune advise`: the advised method, the reasons, and what each method costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cluster.text import byte_size, compact, long_duration
from jobs.advice.method_choice import NAMES, Choice, Method, Situation
from jobs.planning.strategies import JobPlan
from jobs.preflight.plan_text import format_missing, format_strategy, gib
from jobs.search.rules.prior import PROMPT_RATE
from orchestrator.pages.plan import plan_json
from orchestrator.pages.tables import columns, table

_CHECKPOINT_BYTES: Final = 12  # for each trained parameter: its weight and two moments of AdamW in fp32
RATE_OF_LORA: Final = 10  # best learning rate of LoRA, in learning rates of full fine-tuning


def advice_page(
    choice: Choice,
    situation: Situation,
    plans: Mapping[Method, JobPlan],
    impossible: Mapping[Method, str],
    rate: float,
    price: float | None = None,
) -> str:
    """Format the advice.

    Args:
        impossible: methods that cannot be planned for this model, with the reason.
        rate: learning rate for full fine-tuning.
        price: of one GPU for one hour.
    """
    others = choice.changes or ("none: no other data, tasks, goal or machines alone would change it",)
    facts = [
        ("data", f"{situation.data} for training"),
        ("measure", situation.measure),
        ("machines", str(plans["full"].machines)),
        ("advice", "no method fits" if choice.method is None else f"method: {choice.method}"),
        ("because", choice.why),
        *(("other advice", other) for other in others),
        *((f"no {NAMES[method]}", why) for method, why in impossible.items()),
    ]
    head = ("", "trained", "checkpoint", "strategy", "GiB", "whole run", "learning rate")
    about = {method: "" if method == "full" else "about " for method in plans}
    rows = [(method, *_row(plan, price), f"{about[method]}{_rates(rate)[method]:g}") for method, plan in plans.items()]
    limits = (
        "The limits are rules of thumb: see docs/planning.md. kind: compare measures the methods on your data: see "
    )
    return "\n\n".join([table(facts), columns(head, rows), f"{limits}docs/comparison.md"])


def advice_json(
    choice: Choice,
    situation: Situation,
    plans: Mapping[Method, JobPlan],
    impossible: Mapping[Method, str],
    rate: float,
    price: float | None = None,
) -> dict[str, Any]:
    """Return the advice for programs. Arguments: see `advice_page`."""
    return {
        "method": choice.method,
        "why": choice.why,
        "changes": choice.changes,
        "examples": situation.examples,
        "tokens": situation.tokens,
        "counted_by": "examples" if situation.is_labelled else "tokens",
        "tasks": situation.tasks,
        "learning_rates": {method: _rates(rate)[method] for method in plans},
        "plans": {method: plan_json(plan, price) for method, plan in plans.items()},
        "impossible": dict(impossible),
    }


def _rates(rate: float) -> dict[Method, float]:
    """Return the learning rate to begin with, given that of full fine-tuning."""
    return {"full": rate, "lora": float(f"{rate * RATE_OF_LORA:.3g}"), "prompt": PROMPT_RATE}


def _row(plan: JobPlan, price: float | None) -> tuple[str, ...]:
    option = plan.chosen or plan.nearest
    hours = plan.hours(option)
    length = f"{option.time.tokens_per_s:,.0f} tokens/s"
    if hours is not None:
        cost = "" if price is None else f", {hours * plan.machines.gpus * price:,.2f}"
        length = f"{long_duration(3600 * hours)}, {hours * plan.machines.gpus:,.2f} {plan.device}-hours{cost}"
    lacks = "" if option.fits else f", {format_missing(option)} too much"
    return (
        f"{compact(plan.trained)} of {compact(plan.parameters)}",
        byte_size(_CHECKPOINT_BYTES * plan.trained),
        format_strategy(option.strategy),
        f"{gib(option.memory.total)} of {gib(option.room)}{lacks}",
        length,
    )
