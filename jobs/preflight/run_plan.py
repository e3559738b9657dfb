"""Plans every run before its workers start: chooses what the spec leaves out, and refuses jobs that cannot fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cluster.errors import DataError, OutOfMemory
from cluster.text import long_duration, many
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Prepared
from jobs.model_files.directory import weight_files
from jobs.model_files.sizes import FEED_FORWARD, HEADS, LAYERS, VOCABULARY, WIDTH, size_in
from jobs.model_files.without_weights import without_weights
from jobs.planning import plan_batching
from jobs.planning.accelerators import GIB, Accelerator, Machines
from jobs.planning.memory import COPIED, PROGRAM_BYTES, RESERVE_OF_PROCESS, rows_within
from jobs.planning.precision import precision_of
from jobs.planning.strategies import JobPlan, Option
from jobs.planning.strategy import as_traced, strategy_of
from jobs.preflight.cache import is_cached
from jobs.preflight.plan import choosable_fields, config_of, cpu_worker, plan_on
from jobs.preflight.plan_text import format_fields, format_refusal, format_strategy, gib
from jobs.remedies.out_of_memory import with_global_batch
from jobs.run.checkpoints import newest_step
from jobs.run.paths import JobPaths
from jobs.run.record import known_check
from jobs.run.run_plan import RunPlan, read_plan, write_plan
from jobs.spec.finetune import PLANNED, Planned, Spec

# Largest error of predictions, as a share; a job that lacks less memory is tried. Plans of workers without GPU count
# freed memory, and a checkpoint that is being written, at the highest moment.
_UNCERTAIN, _UNCERTAIN_ON_CPU = 0.05, 0.3
# A job whose rough bound is below this share of the room is not traced, which takes seconds. Below these bytes, the
# machines are not asked either.
_SMALL: Final = 0.5
_TINY_BYTES: Final = 1 << 30
_ROUNDED_TO: Final = 64  # tokens to which lengths are rounded, so that runs on similar data share a trace
_MICRO_BATCH: Final = "per_device_train_batch_size"
# Bytes of memory for each byte of weights in files: these have 2 bytes for each element or more, and a worker without
# GPU needs at most 28 for each (weights, gradients, Adam's states, buckets), beside the copies of the state.
_FOR_EACH_BYTE, _LEAST_WIDTH = 14, 2
# Tensors that one token leaves in a layer: of the layer's width, of the inner width, and of the attention matrix.
_OF_WIDTH, _OF_INNER, _OF_ATTENTION, _OF_LOGITS = 40, 8, 6, 6
_FP32 = 4

FindPlaces = Callable[[], "Places | None"]
Announce = Callable[..., None]  # see `jobs.run.events.Announcer`


@dataclass(frozen=True)
class Places:
    """Where the workers of a run will be.

    Attributes:
        nodes: of one gang; in a sweep, of the gang that has most.
        workers_per_node: of all gangs, on the node that has most of them.
        free_bytes: memory that programs can still use there.
        gpu: None: workers use no GPU.
    """

    nodes: int
    workers_per_node: int
    free_bytes: int
    gpu: Accelerator | None = None

    def machines(self, cores: int) -> Machines:
        """Describe them for a plan. `cores`: of each worker."""
        accelerator = self.gpu or cpu_worker(self.free_bytes // self.workers_per_node, cores)
        return Machines(self.nodes, self.workers_per_node, accelerator, self.free_bytes / GIB)


@dataclass(frozen=True)
class EarlierChoice:
    """The choice of the plans of earlier attempts.

    Attributes:
        fields: the fields of `train` that were chosen, with their values.
        choosable: the fields that this attempt may choose.
    """

    fields: Mapping[str, Any]
    choosable: frozenset[Planned]


def earlier_choice(spec: Spec, paths: JobPaths) -> EarlierChoice:
    """Return the choice of the earlier attempts for the fields that the spec still leaves out.

    With the same micro-batch, a resumed run computes the same numbers. So fields that an earlier plan left at their
    defaults stay there too. A micro-batch that would leave workers of a larger gang without rows is chosen anew.
    """
    earlier, choosable = read_plan(paths), choosable_fields(spec)
    if earlier is None:
        return EarlierChoice({}, choosable)
    fields: dict[str, Any] = {name: value for name, value in earlier.chosen.items() if name in choosable}
    most = -(-plan_batching(spec).rows // spec.resources.num_workers)
    if fields.get(_MICRO_BATCH, 1) <= most:
        return EarlierChoice(fields, frozenset())
    del fields[_MICRO_BATCH]
    return EarlierChoice(fields, frozenset({_MICRO_BATCH}))


def with_planned_fields(
    spec: Spec,
    earlier: EarlierChoice,
    prepared: Prepared,
    find_places: FindPlaces,
    paths: JobPaths,
    announce: Announce,
    most_workers: int = 1,
    copied_bytes: int = COPIED,
) -> Spec:
    """Plan the run, store and announce the plan, and return the spec with the chosen fields.

    Args:
        spec: with the number of workers of this attempt, the earlier choice, and the changes after a lack of memory.
        earlier: see `earlier_choice`. All that the spec leaves out is chosen anew if nothing fits with it.
        find_places: returns where the workers will be, or None if it is not known; then nothing is planned.
        most_workers: largest number of workers of the job.
        copied_bytes: see `jobs.planning.memory.memory_of_process`.

    Raises:
        OutOfMemory: no option fits, and more memory is missing than the plan may be wrong by.
    """
    if not spec.resources.plan:
        return spec
    model_dir, longest = without_weights(spec.model.path), _longest_row(spec, prepared)
    bound = None if spec.resources.gpus_per_worker else _bound(spec, model_dir, longest, copied_bytes)
    if bound is not None and bound < _TINY_BYTES:
        _keep_bound(spec, bound, earlier.fields, paths)
        return spec
    places = find_places()
    if places is None:
        return spec
    if bound is not None and bound < _SMALL * places.free_bytes / places.workers_per_node:
        _keep_bound(spec, bound, earlier.fields, paths)
        return spec
    announce("phase", "planning the memory of the workers", phase="plan")
    steps = step_plan(spec, prepared.split("train")).total_steps
    machines, most = places.machines(spec.resources.cpus_per_worker), most_workers
    allowed = fields_to_choose(spec, earlier)
    tried = [*allowed, PLANNED] if spec.remedies.out_of_memory and PLANNED not in allowed else allowed
    try:
        for choosable in tried:
            plan = plan_on(spec, machines, model_dir, steps, longest, choosable, most, copied_bytes)
            if plan.chosen is not None:
                break
    except DataError as error:  # the dry run has shown that the model works, so the plan is at fault
        announce("warning", f"memory is not planned: {error}")
        return spec
    option, warning = option_to_try(plan, rewrites=choosable not in allowed)
    if warning:
        announce("warning", warning)
    _keep(plan, option, {**earlier.fields, **option.changes}, paths, announce)
    return with_fields(spec, option.changes)


def fields_to_choose(spec: Spec, earlier: EarlierChoice) -> list[frozenset[Planned]]:
    """Return the fields that a plan may choose: those of the first plan, and those of a second one. Pure.

    The second plan is made if nothing fits, as on machines with less memory than before. No plan chooses fields that
    were changed after a lack of memory.
    """
    left_out, fields = choosable_fields(spec), strategy_of(spec).fields
    again = left_out | {name for name in PLANNED if name in earlier.fields and fields[name] == earlier.fields[name]}
    return list(dict.fromkeys([earlier.choosable & left_out, again]))


def option_to_try(plan: JobPlan, rewrites: bool) -> tuple[Option, str]:
    """Return the option with which the run starts, and a warning, which is empty if there is none. Pure.

    Args:
        rewrites: the plan was allowed to change values that the spec has.

    Raises:
        OutOfMemory: no option fits, and more memory is missing than the plan may be wrong by.
    """
    option = plan.chosen
    if option is not None:
        said = f"the values of the spec do not fit {plan.machines}, so remedies.out_of_memory changes them"
        return option, f"{said}: {format_fields(option.changes)}" if rewrites else ""
    near, said = plan.nearest, format_refusal(plan)
    share = _UNCERTAIN_ON_CPU if plan.machines.is_cpu else _UNCERTAIN
    if near.missing > share * near.memory.total or near.missing_on_host > share * near.memory.host:
        raise OutOfMemory(f"the job {said}. To try it anyway, set resources.plan: false")
    return near, f"the job may not fit: according to the plan, it {said}"


def _longest_row(spec: Spec, prepared: Prepared) -> int:
    """Return the tokens of the longest row, rounded up."""
    longest = -(-int(prepared.split("train").index.num_tokens.max()) // _ROUNDED_TO) * _ROUNDED_TO
    return min(longest, spec.data.seq_len)


def with_fields(spec: Spec, fields: Mapping[str, Any]) -> Spec:
    """Return the spec with fields of `train`, and with the same global batch."""
    values = dict(fields)
    if "zero" in values:  # what is written about buckets stays, unless the plan makes them smaller
        offload = {"offload_optimizer": None, "offload_param": None}
        values["zero"] = spec.train.zero.model_copy(update=offload | values["zero"])
    if values.get(_MICRO_BATCH, spec.train.per_device_train_batch_size) != spec.train.per_device_train_batch_size:
        spec = with_global_batch(spec)
    return spec.model_copy(update={"train": spec.train.model_copy(update=values)})


def _bound(spec: Spec, model_dir: str, longest: int, copied_bytes: int) -> int | None:
    """Bound the memory of a worker without GPU beside its program; None: unknown, or a cached trace is more exact."""
    config = config_of(spec, model_dir)
    traced = as_traced(spec.with_value("data.seq_len", longest), config)
    if is_cached(traced, model_dir, precision_of(spec.train, False), on_gpu=False):
        return None
    sizes = [os.path.getsize(os.path.join(model_dir, name)) for name in weight_files(model_dir)]
    return rough_bytes(spec, config, sum(sizes), longest, copied_bytes)


def _keep_bound(spec: Spec, bound: int, chosen: Mapping[str, Any], paths: JobPaths) -> None:
    """Store a plan that is an upper bound. It is not announced: there is nothing to decide."""
    most = int((PROGRAM_BYTES + bound) / (1 - RESERVE_OF_PROCESS))
    workers, precision = spec.resources.num_workers, precision_of(spec.train, False)
    plan = RunPlan(machines=f"{workers}xCPU", precision=precision, is_bound=True,
                   chosen=dict(chosen), total_bytes=most)  # fmt: skip
    write_plan(paths, plan)


def _keep(plan: JobPlan, option: Option, fields: dict[str, Any], paths: JobPaths, announce: Announce) -> None:
    """Store and announce the plan. The stored time is the roofline's; the announced one follows earlier attempts."""
    time, memory = option.time, option.memory
    check = known_check(paths)
    pace = check.pace_on(plan.machines.accelerator.name) if check is not None else None
    write_plan(
        paths,
        RunPlan(
            machines=str(plan.machines),
            precision=plan.precision,
            parameters=plan.parameters,
            chosen=fields,
            memory={name: size for name, size in dataclasses.asdict(memory).items() if size},
            total_bytes=memory.total,
            room_bytes=option.room,
            step_s=time.seconds,
            tokens_per_s=time.tokens_per_s,
            total_steps=plan.total_steps,
        ),
    )
    left, step_s = (plan.total_steps or 0) - newest_step(paths), time.seconds * (pace or 1.0)
    # The values of the other fields were changed after a lack of memory.
    trained = {name: value for name, value in fields.items() if option.strategy.fields[name] == value}
    said = (
        f"plan: {gib(memory.total)} of {gib(option.room)} GiB for each {plan.device} "
        f"({format_strategy(option.strategy)}), about {long_duration(left * step_s)} for {many(left, 'step')}"
    )
    said += " at the pace of earlier steps" if pace else ""
    said += f"; chosen: {format_fields(trained)}" if trained else ""
    announce(
        "planned",
        said + (f"; {plan.note}" if plan.note else ""),
        total_bytes=memory.total,
        room_bytes=option.room,
        step_s=step_s,
        remaining_s=left * step_s,
        chosen=trained,
        note=plan.note,
    )


def rough_bytes(
    spec: Spec, config: Mapping[str, Any], weights_bytes: int, seq_len: int, copied_bytes: int = COPIED
) -> int | None:
    """Return an upper bound of the bytes that a worker without GPU needs beside its program; None: unknown.

    The model need not be traced for it.

    Args:
        config: the content of the model's config.json.
        weights_bytes: size of the files with the model's weights.
        copied_bytes: see `jobs.planning.memory.memory_of_process`.
    """
    layers, width, heads = (size_in(config, names) for names in (LAYERS, WIDTH, HEADS))
    if not (layers and width and heads and weights_bytes):
        return None
    feed_forward = size_in(config, FEED_FORWARD) or 4 * width
    experts = size_in(config, ("num_experts_per_tok",)) or 1
    per_token = layers * (width * _OF_WIDTH + experts * feed_forward * _OF_INNER + heads * seq_len * _OF_ATTENTION)
    vocabulary = (size_in(config, VOCABULARY) or 0) if spec.model.task == "causal-lm" else 0
    rows = spec.train.per_device_train_batch_size
    evaluated = rows_within(spec.eval.per_device_eval_batch_size, rows, seq_len * vocabulary) if spec.evaluates else 0
    logits = (rows * _OF_LOGITS + evaluated) * vocabulary
    for_each_byte = _FOR_EACH_BYTE + copied_bytes // _LEAST_WIDTH
    return for_each_byte * weights_bytes + seq_len * (rows * per_token + logits) * _FP32
