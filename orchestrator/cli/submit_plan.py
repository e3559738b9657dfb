"""Plans jobs at `fleetune submit`, on the GPUs of the cluster. So users learn at once that a job is too large.

No job is refused. Only its driver knows its nodes, the memory of their hosts, and the longest row, and plans again
before workers start.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cluster.errors import DataError, FleetuneError, InputError
from cluster.text import compact, long_duration, many
from jobs.planning.accelerators import Machines, accelerator_of
from jobs.planning.elastic import worker_numbers
from jobs.planning.memory import COPIED, COPIED_BY_TRIALS
from jobs.planning.strategies import JobPlan
from jobs.preflight.plan_text import format_fields, format_refusal, format_strategy, gib
from jobs.search.rules.varying import engines
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import PLANNED, Spec
from jobs.spec.load import AnySpec
from jobs.spec.sweep import Search
from orchestrator.api import Nodes, NodeView
from orchestrator.client.connection import Connection
from orchestrator.client.spec_names import Named

Say = Callable[[str], None]
_SHOWN: Final = 5  # plans that fit
# Sections on which a plan does not depend, and fields of `train` that change neither memory nor time.
_OTHER_SECTIONS: Final = {"name", "seed", "queue", "eval", "checkpoint"}
_ALIKE: Final = {"learning_rate": 1e-5, "warmup_ratio": None, "warmup_steps": None, "weight_decay": 0.0}


def plan_all(specs: Sequence[Named], several: bool, server: Connection, say: Say) -> None:
    """Plan each job whose workers have GPUs, say what is chosen, and warn of a job that fits no kind of node.

    Jobs with the same plan are told once. Without torch on this machine, nothing is planned.

    Args:
        several: whether the user has given more specs than one.
    """
    jobs = [(one, title, job) for one in specs for title, job in planned_jobs(one.spec)]
    if not jobs or importlib.util.find_spec("torch") is None:
        return
    try:
        nodes = server.get("/v1/nodes", Nodes).nodes
    except FleetuneError as error:  # the server queues jobs meanwhile
        say(f"not planned: {error}")
        return
    shown = 0
    told = set[str]()
    for one, title, job in jobs:
        places = machines_on(job, nodes)
        trials = isinstance(one.spec, Search)
        key = f"{_alike(job)} {trials}"
        if not places or key in told:
            continue
        if not told:
            say("planning the memory of the workers")
        told.add(key)
        name = " of " + ", ".join(filter(None, (one.name if several else "", title))) if several or title else ""
        try:
            plan, changed = _plan(job, places, trials)
        except DataError as error:  # a worker may have other versions
            say(f"warning: memory is not planned: {error}")
            continue
        if plan.chosen is None or changed:
            what = f"one gang of the {'sweep' if one.spec.kind == 'sweep' else 'comparison'}" if trials else "it"
            say(f"warning: the plan{name}: on {plan.machines}, {what} {_problem(plan, what)}")
        elif shown < _SHOWN:
            shown += 1
            say(f"plan{name}: {format_plan(plan)}")


def planned_jobs(spec: AnySpec) -> list[tuple[str, Spec]]:
    """Return the jobs that are planned, each with a title if there may be several. Pure.

    That is the spec itself, the base of a sweep, or the job of each method of a comparison. Searches whose trials have
    different engines are left out.
    """
    found = [("", spec)] if isinstance(spec, Spec) else []
    if isinstance(spec, Search) and engines((sweeps := spec.sweeps)[0]) == [{}]:
        titles = [f"method {one.name}" for one in spec.methods] if isinstance(spec, CompareSpec) else [""]
        found = [(title, sweep.base) for title, sweep in zip(titles, sweeps, strict=True)]
    return [(title, job) for title, job in found if job.resources.plan and job.resources.gpus_per_worker]


def machines_on(job: Spec, nodes: Iterable[NodeView]) -> list[Machines]:
    """Return the machines of a gang of the job on each kind of node that has room for it. Pure.

    Kinds that are not in the table of accelerators are left out. An elastic job has the largest useful number of
    workers for which there is room.
    """
    resources, room = job.resources, defaultdict[str, list[int]](list)
    for node in nodes:
        if node.accelerator_type and resources.accelerator_type in (None, node.accelerator_type):
            room[node.accelerator_type].append(min(node.cpus // resources.cpus_per_worker, node.gpus))
    found = []
    for kind, fits in sorted(room.items()):
        workers = max((number for number in worker_numbers(job) if number <= sum(fits)), default=0)
        if not workers:
            continue
        sizes = (size for size in range(workers, 0, -1) if workers % size == 0)
        each = next(size for size in sizes if sum(fit // size for fit in fits) >= workers // size)
        try:
            found.append(Machines(workers // each, each, accelerator_of(kind)))
        except InputError:  # the table lacks it, or the name leaves its memory open
            continue
    return found


def format_plan(plan: JobPlan) -> str:
    """Describe the chosen option in one line."""
    option = plan.chosen
    assert option is not None
    said = (
        f"on {plan.machines}, {gib(option.memory.total)} of {gib(option.room)} GiB for each {plan.device} "
        f"({format_strategy(option.strategy)}), {compact(option.time.seconds)} s for a step"
    )
    if plan.total_steps is not None:
        whole = long_duration(plan.total_steps * option.time.seconds)
        said += f", about {whole} for {many(plan.total_steps, 'step')}"
    said += f"; chosen: {format_fields(option.changes)}" if option.changes else ""
    return said + (f"; {plan.note}" if plan.note else "")


def _problem(plan: JobPlan, what: str) -> str:
    if plan.chosen is None:
        return format_refusal(plan, what)
    return f"does not fit with the values of the spec. The run will change them: {format_fields(plan.chosen.changes)}"


def _alike(job: Spec) -> str:
    """Return a text that is the same for jobs with the same plan."""
    like = job.model_copy(update={"train": job.train.model_copy(update=_ALIKE)})
    return like.model_dump_json(exclude=_OTHER_SECTIONS)


def _plan(job: Spec, places: Sequence[Machines], trials: bool) -> tuple[JobPlan, bool]:
    """Return the fastest plan that fits, else the one that lacks least, and whether it changes what the spec says.

    As before a run, `remedies.out_of_memory` may change that if nothing fits with it.
    """
    from jobs.preflight.plan import plan_job

    copied = COPIED_BY_TRIALS if trials else COPIED
    plans = [plan_job(job, machines, copied) for machines in places]
    changed = False
    if not any(plan.chosen for plan in plans) and job.remedies.out_of_memory and not trials:
        others = [plan_job(job, machines, copied, PLANNED) for machines in places]
        changed = any(plan.chosen for plan in others)
        plans = others if changed else plans
    fitting = [(plan.chosen.time.seconds, plan) for plan in plans if plan.chosen is not None]
    if fitting:
        return min(fitting, key=lambda found: found[0])[1], changed
    return min(plans, key=lambda plan: plan.nearest.missing + plan.nearest.missing_on_host), changed
