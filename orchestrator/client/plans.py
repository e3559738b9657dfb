"""Plans jobs on the GPUs of the cluster before they are queued, so that users learn at once that a job is too large.

No job is refused. Only its driver knows its nodes, the memory of their hosts, and the longest row, and plans again
before workers start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.errors import InputError, SpecError
from cluster.text import compact, long_duration, many
from jobs.planning.accelerators import Machines, accelerator_of
from jobs.planning.elastic import worker_numbers
from jobs.planning.memory import COPIED, COPIED_BY_TRIALS
from jobs.planning.strategies import JobPlan
from jobs.preflight.plan_text import format_fields, format_refusal, format_strategy, gib
from jobs.search.rules.varying import engines
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import PLANNED, Planned, Spec
from jobs.spec.load import AnySpec
from jobs.spec.sweep import Search
from orchestrator.api import NodeView
from orchestrator.client.spec_names import Named

# Sections on which a plan does not depend, and fields of `train` that change neither memory nor time.
_OTHER_SECTIONS: Final = {"name", "seed", "queue", "eval", "checkpoint"}
_ALIKE: Final = {"learning_rate": 1e-5, "warmup_ratio": None, "warmup_steps": None, "weight_decay": 0.0}


@dataclass(frozen=True)
class Gang:
    """A gang to plan.

    Attributes:
        name: its spec and, in a comparison, its method; empty if there is one gang.
        what: the gang in messages: it, or one gang of the sweep.
        machines: for each kind of node with room for it.
        runs_trials: whether it runs the trials of a search.
    """

    name: str
    what: str
    job: Spec
    machines: tuple[Machines, ...]
    runs_trials: bool


@dataclass(frozen=True)
class GangPlan:
    """The plan of a gang on the kind of node where it is fastest. `str(plan)` describes it in one line.

    Attributes:
        name: its spec and, in a comparison, its method; empty if there is one gang.
        plan: `plan.chosen` has memory in bytes and time in seconds of the chosen option; None: no option fits.
        rewrites: whether the job fits only with other values than its spec has, which the run will change.
    """

    name: str
    plan: JobPlan
    rewrites: bool
    _what: str

    @property
    def fits(self) -> bool:
        """Whether the job fits as it is written."""
        return self.plan.chosen is not None and not self.rewrites

    def __str__(self) -> str:
        plan, option = self.plan, self.plan.chosen
        if option is None:
            return f"on {plan.machines}, {self._what} {format_refusal(plan, self._what)}"
        if self.rewrites:
            problem = "does not fit with the values of the spec. The run will change them"
            return f"on {plan.machines}, {self._what} {problem}: {format_fields(option.changes)}"
        said = (
            f"on {plan.machines}, {gib(option.memory.total)} of {gib(option.room)} GiB for each {plan.device} "
            f"({format_strategy(option.strategy)}), {compact(option.time.seconds)} s for a step"
        )
        if plan.total_steps is not None:
            whole = long_duration(plan.total_steps * option.time.seconds)
            said += f", about {whole} for {many(plan.total_steps, 'step')}"
        said += f"; chosen: {format_fields(option.changes)}" if option.changes else ""
        return said + (f"; {plan.note}" if plan.note else "")


def gangs_of(specs: Sequence[Named], nodes: Sequence[NodeView], several: bool) -> list[Gang]:
    """Return the gangs with GPUs for which the nodes have room; of those with the same plan, the first. Pure.

    Args:
        several: whether names have the spec.
    """
    found: dict[str, Gang] = {}
    for one in specs:
        runs_trials = isinstance(one.spec, Search)
        what = f"one gang of the {'sweep' if one.spec.kind == 'sweep' else 'comparison'}" if runs_trials else "it"
        for method, job in planned_jobs(one.spec):
            name = ", ".join(filter(None, (one.name if several else "", method)))
            if machines := tuple(machines_on(job, nodes)):
                found.setdefault(f"{_alike(job)} {runs_trials}", Gang(name, what, job, machines, runs_trials))
    return list(found.values())


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


def plan_gang(gang: Gang) -> GangPlan:
    """Return the fastest plan that fits, else the one that lacks least.

    As before a run, `remedies.out_of_memory` may change what the spec says if nothing fits with it. Needs torch.

    Raises:
        SpecError: the job can run on none of the kinds of GPUs, such as with bf16 on a V100.
        DataError: the model or the data cannot be read, or the model cannot be traced.
    """
    plans, rewrites = _plans(gang), False
    if not any(plan.chosen for plan in plans) and gang.job.remedies.out_of_memory and not gang.runs_trials:
        others = _plans(gang, PLANNED)
        rewrites = any(plan.chosen for plan in others)
        plans = others if rewrites else plans
    fitting = [(plan.chosen.time.seconds, plan) for plan in plans if plan.chosen is not None]
    if fitting:
        best = min(fitting, key=lambda found: found[0])[1]
    else:
        best = min(plans, key=lambda plan: plan.nearest.missing + plan.nearest.missing_on_host)
    return GangPlan(gang.name, best, rewrites, gang.what)


def _plans(gang: Gang, choosable: frozenset[Planned] | None = None) -> list[JobPlan]:
    """Return the plan on each kind of node that can run the job. Raises SpecError if none can, and DataError."""
    from jobs.preflight.plan import plan_job

    copied = COPIED_BY_TRIALS if gang.runs_trials else COPIED
    plans, wrong = list[JobPlan](), list[SpecError]()
    for machines in gang.machines:
        try:
            plans.append(plan_job(gang.job, machines, copied, choosable))
        except SpecError as error:
            wrong.append(error)
    if not plans:
        raise wrong[0]
    return plans


def _alike(job: Spec) -> str:
    """Return a text that is the same for jobs with the same plan."""
    like = job.model_copy(update={"train": job.train.model_copy(update=_ALIKE)})
    return like.model_dump_json(exclude=_OTHER_SECTIONS)
