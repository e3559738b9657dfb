"""The command `fleetune advise`: recommends full fine-tuning, LoRA or prompt tuning, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Annotated, get_args

import typer

from cluster.errors import DataError
from jobs.advice.method_choice import Goal, Method, Situation, choose
from jobs.planning.strategies import JobPlan
from jobs.preflight.data_commands import prepare_data
from jobs.preflight.plan_text import format_missing
from jobs.run.outcome import event
from jobs.search.rules.prior import hidden_size, rate_by_size
from jobs.spec.finetune import Spec
from jobs.spec.load import finetune_spec, load_marked
from jobs.storage import strict_json
from orchestrator.cli.options import HostMemory, Json, On, Price, Set, SpecFile, machines_on
from orchestrator.cli.output import progress_of
from orchestrator.pages.advice import RATE_OF_LORA, advice_json, advice_page


def advise(
    spec: SpecFile,
    set_: Set = None,
    on: On = None,
    host_memory: HostMemory = None,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Number of models to train from this base model.")] = 1,
    goal: Annotated[Goal, typer.Option("--goal", help="What decides if several methods fit.")] = "accuracy",
    price: Price = None,
    json_: Json = False,
) -> None:
    """Choose between full fine-tuning, LoRA and prompt tuning.

    The command prepares the data (like `fleetune data prepare`) to count it, and plans each method. Labelled data is
    counted in examples, and text without labels in tokens.
    """
    loaded = finetune_spec(load_marked(spec, set_ or []).spec, spec)
    from jobs.preflight.plan import machines_for, plan_job

    # Before the data is prepared, which may take long.
    machines = machines_on(on, host_memory) or machines_for(loaded)
    plans: dict[Method, JobPlan] = {}
    impossible: dict[Method, str] = {}
    with closing(progress_of(json_)) as progress:
        prepared = prepare_data(_with(loaded, "full"), None, progress)
        for method in get_args(Method):
            progress.event(event("phase", f"planning method: {method}", phase="plan"))
            try:
                plan = plan_job(_with(loaded, method), machines)
            except DataError as error:  # such as positions that a prompt would need
                if method == "full":
                    raise
                impossible[method] = str(error)
                continue
            # The rows of a prompt are not prepared here. They are as many, or shorter and more if rows are packed.
            plans[method] = plan if plan.total_steps else replace(plan, total_steps=plans.get("full", plan).total_steps)
    parts = prepared.manifest.splits["train"]
    situation = situation_of(
        loaded,
        plans,
        examples=sum(part.samples for part in parts),
        tokens=sum(part.tokens for part in parts),
        tasks=tasks,
        goal=goal,
    )
    choice = choose(situation)
    if json_:
        typer.echo(
            strict_json.for_programs(advice_json(choice, situation, plans, impossible, rate_for_full(loaded), price))
        )
    else:
        typer.echo(advice_page(choice, situation, plans, impossible, rate_for_full(loaded), price))
    raise typer.Exit(0 if choice.method is not None else 2)


def situation_of(
    spec: Spec, plans: Mapping[Method, JobPlan], *, examples: int, tokens: int, tasks: int, goal: Goal
) -> Situation:
    """Return the facts that decide. `plans`: of each method that the model allows, on the same machines."""
    full, lora = plans["full"], plans.get("lora")
    option, machines = full.chosen or full.nearest, full.machines
    speed = option.time.tokens_per_s if lora is None else (lora.chosen or lora.nearest).time.tokens_per_s
    trained_on = {spec.data.format_of(source) for source in spec.data.train}
    return Situation(
        examples=examples,
        tokens=tokens,
        is_labelled=trained_on != {"text"},  # text beside labelled data is mostly replay
        parameters=full.parameters,
        tasks=tasks,
        possible=frozenset(plans),
        fitting=frozenset(method for method, plan in plans.items() if plan.chosen is not None),
        gpu_gib=None if machines.is_cpu else machines.accelerator.memory_gib,
        goal=goal,
        offloads=option.strategy.offload_optimizer or option.strategy.offload_param,
        times_lora=speed / option.time.tokens_per_s,
        lacking=format_missing(option),
    )


def rate_for_full(spec: Spec) -> float:
    """Return a learning rate for full fine-tuning.

    It is the spec's own rate for `method: full`, a tenth of a rate that was written for LoRA, and otherwise the rate
    that a search would begin with for a model of this size.
    """
    rate = spec.train.learning_rate
    if spec.method.kind == "full":
        return rate
    if spec.method.kind == "lora" and "learning_rate" in spec.train.model_fields_set:
        return float(f"{rate / RATE_OF_LORA:.3g}")
    hidden = hidden_size(spec.model.path)
    return rate_by_size(hidden) if hidden else float(type(spec.train)().learning_rate)


def _with(spec: Spec, method: Method) -> Spec:
    """Return the spec with this method, and with default settings for the other methods."""
    chosen = spec.method.model_copy(update={"kind": method})
    others = {name: type(getattr(spec, name))() for name in ("lora", "prompt") if name != method}
    return spec.model_copy(update={"method": chosen, **others})
