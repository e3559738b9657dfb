"""Plans jobs at `fleetune submit`, on the cluster's GPUs, so that nobody waits for a job that cannot fit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cluster.errors import DataError, InputError, SpecError
from cluster.text import long_duration, many
from jobs.planning.accelerators import Machines, accelerator_of
from jobs.planning.memory import COPIED, COPIED_BY_TRIALS
from jobs.planning.strategies import JobPlan
from jobs.preflight.plan_text import format_fields, format_refusal, format_strategy, gib
from jobs.spec.finetune import Spec
from jobs.spec.load import trained_job
from jobs.spec.sweep import SweepSpec
from orchestrator.api import Nodes, NodeView
from orchestrator.client.spec_names import Named, place_errors

Say = Callable[[str], None]
_UNCERTAIN: Final = 0.05  # as for a run: see `jobs.preflight.run_plan`
_SHOWN: Final = 5  # plans
# Sections on which a plan depends, and fields of them that change neither memory nor time.
_SECTIONS: Final = {"model", "data", "method", "train", "resources", "storage_path"}
_ALIKE: Final = {"learning_rate": 1e-5, "warmup_ratio": None, "warmup_steps": None, "weight_decay": 0.0}


def plan_all(specs: Sequence[Named], cluster: Nodes, say: Say) -> None:
    """Plan each job whose workers have GPUs, and say what is chosen. Without torch on this machine, nothing is planned.

    The plan assumes the memory that hosts with such GPUs usually have, so a lack of host memory only warns.

    Raises:
        SpecError: a job lacks GPU memory on every kind of node that the cluster has.
    """
    if importlib.util.find_spec("torch") is None:
        return
    known: dict[str, JobPlan | None] = {}
    for one in specs:
        job = trained_job(one.spec)
        if job is None or not job.resources.plan or not job.resources.gpus_per_worker:
            continue
        found = places_of(job, cluster.nodes)
        places = [machines for machines in found.values() if machines is not None]
        if not places:
            continue
        if not known:
            say("planning the memory of the workers")
        key = f"{_alike(job)} {isinstance(one.spec, SweepSpec)} {places}"
        if key not in known:
            known[key] = _planned(one, job, places, say)
            plan = known[key]
            if plan is not None and plan.chosen is not None and len(known) <= _SHOWN:
                say(f"plan of {one.name}: {format_plan(plan)}" if len(specs) > 1 else f"plan: {format_plan(plan)}")
        plan = known[key]
        if plan is not None and plan.chosen is None:
            _refuse(one, plan, not cluster.growth and None not in found.values(), say)


def places_of(job: Spec, nodes: Iterable[NodeView]) -> dict[str, Machines | None]:
    """Return the machines of a gang of the job on each kind of node; None: the kind's memory is not known. Pure."""
    resources = job.resources
    largest: dict[str, int] = {}
    for node in nodes:
        kind = node.accelerator_type
        if node.usable and node.gpus and kind and resources.accelerator_type in (None, kind):
            largest[kind] = max(node.gpus, largest.get(kind, 0))
    found: dict[str, Machines | None] = {}
    for kind, gpus in sorted(largest.items()):
        workers = resources.num_workers
        each = max(size for size in range(1, min(gpus, workers) + 1) if workers % size == 0)
        try:
            found[kind] = Machines(workers // each, each, accelerator_of(kind))
        except InputError:  # the table lacks it, or the name leaves its memory open
            found[kind] = None
    return found


def format_plan(plan: JobPlan) -> str:
    """Describe the chosen option in one line."""
    option = plan.chosen
    assert option is not None
    said = (
        f"on {plan.machines}, {gib(option.memory.total)} of {gib(option.room)} GiB for each {plan.device} "
        f"({format_strategy(option.strategy)}), {option.time.seconds:.2g} s for a step"
    )
    if plan.total_steps is not None:
        whole = long_duration(plan.total_steps * option.time.seconds)
        said += f", about {whole} for {many(plan.total_steps, 'step')}"
    return said + (f"; chosen: {format_fields(option.changes)}" if option.changes else "")


def _alike(job: Spec) -> str:
    """Return a text that is the same for jobs with the same plan."""
    like = job.model_copy(update={"train": job.train.model_copy(update=_ALIKE)})
    return like.model_dump_json(include=_SECTIONS)


def _planned(one: Named, job: Spec, places: Sequence[Machines], say: Say) -> JobPlan | None:
    """Return the fastest plan that fits, else the one that lacks least; None: the model cannot be traced."""
    from jobs.preflight.plan import plan_job

    copied = COPIED_BY_TRIALS if isinstance(one.spec, SweepSpec) else COPIED
    try:
        with place_errors(one):
            plans = [plan_job(job, machines, copied) for machines in places]
    except DataError as error:  # a worker may have other versions
        say(f"warning: {one.name}: memory is not planned: {error}")
        return None
    fitting = [(plan.chosen.time.seconds, plan) for plan in plans if plan.chosen is not None]
    if fitting:
        return min(fitting, key=lambda found: found[0])[1]
    return min(plans, key=lambda plan: plan.nearest.missing)


def _refuse(one: Named, plan: JobPlan, every_node: bool, say: Say) -> None:
    """Raise SpecError if GPU memory lacks for certain. `every_node`: the cluster has no other kinds of nodes."""
    near, what = plan.nearest, "it" if not isinstance(one.spec, SweepSpec) else "one gang of the sweep"
    said = f"on {plan.machines}, {what} {format_refusal(plan, what)}"
    if near.missing > _UNCERTAIN * near.memory.total and every_node:
        with place_errors(one):
            raise SpecError(f"{said}. To queue it anyway, set resources.plan: false")
    say(f"warning: {one.name} may not fit: {said}")
