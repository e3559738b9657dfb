"""Plans a job: traces its model without weights, and compares strategies. Imports torch when it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from cluster.errors import DataError, InputError, SpecError
from cluster.imports import quick_imports
from cluster.local.machine import cpus_here
from cluster.local.memory import memory_here
from cluster.text import many
from jobs.data.order.stream import step_plan, tokens_per_run
from jobs.data.preparation.fingerprint import fingerprint
from jobs.data.prepared import Prepared
from jobs.model_files.architecture import architecture_problems
from jobs.model_files.configuration import config_problems
from jobs.model_files.without_weights import without_weights
from jobs.planning import plan_batching, with_workers
from jobs.planning.accelerators import CPU, GIB, Accelerator, Machines, accelerator_of, machines_with, sizes_of
from jobs.planning.batching import Batching, global_rows, rows_raised
from jobs.planning.memory import COPIED, ModelTrace
from jobs.planning.more_machines import sufficient_machines
from jobs.planning.precision import Precision, precision_of
from jobs.planning.strategies import JobPlan, Option, options
from jobs.planning.strategy import Strategy, as_traced, strategy_of
from jobs.preflight.cache import cached_cpu_speed, cached_trace
from jobs.run.find import with_model_of_run
from jobs.run.paths import prepared_root
from jobs.spec.finetune import PLANNED, Planned, Spec

if TYPE_CHECKING:
    from jobs.preflight.model_trace import ModelTracer

_LOCAL_GB_S = 1.0  # between workers of one machine through gloo: an assumption
_MOST_CHARACTERS = 300


def plan_job(
    spec: Spec,
    machines: Machines | None = None,
    copied_bytes: int = COPIED,
    choosable: frozenset[Planned] | None = None,
    counts_tokens: bool = False,
) -> JobPlan:
    """Plan a job with a worker on each GPU of the machines; None: those of its section `resources`.

    Args:
        choosable: see `plan_on`.
        counts_tokens: whether to count the tokens of the run, which needs the prepared data.
        copied_bytes: see `jobs.planning.memory.memory_of_process`.

    Raises:
        InputError: the spec contradicts itself or the machines, or nothing says which accelerators it has.
        DataError: the model's configuration cannot be read or built.
    """
    found = machines or machines_for(spec)
    if spec.train.bf16 and not (found.is_cpu or found.accelerator.has_bf16):
        raise SpecError(
            f"train.bf16: {found.accelerator.name} does not compute in bf16, and emulates it slowly. Set train.fp16: "
            "true in its place, or leave it out: then the run is in fp32"
        )
    most_workers = 1 if spec.resources.min_workers is None else spec.resources.num_workers
    if (batch := global_rows(spec)) is not None and batch[0] < found.gpus != spec.resources.num_workers:
        raise SpecError(
            f"{batch[1]}, fewer rows than {found} has GPUs: every GPU needs a row of each step. Raise "
            f"{rows_raised(spec, found.gpus)}" + (f", or plan for {many(batch[0], 'GPU')} or fewer" if batch[0] else "")
        )
    resources = _resources_for(spec, found)
    spec = with_model_of_run(with_workers(spec, found.gpus))
    model_dir = without_weights(spec.model.path)
    steps, tokens = _length(spec, model_dir, counts_tokens)
    plan = plan_on(
        spec, found, model_dir, steps, choosable=choosable, most_workers=most_workers, copied_bytes=copied_bytes
    )
    return dataclasses.replace(plan, run_tokens=tokens, resources=resources)


def _resources_for(spec: Spec, machines: Machines) -> dict[str, int | str]:
    """Return the fields of `resources` that a spec for these machines has, where this spec has others."""
    given, gpus = spec.resources, machines.gpus
    fields: dict[str, int | str] = {"num_workers": gpus}
    if given.min_workers is not None:
        fields = {"num_workers": max(gpus, given.num_workers), "min_workers": min(gpus, given.min_workers)}
    if not machines.is_cpu:
        fields["gpus_per_worker"] = 1
        model, _, _ = machines.accelerator.name.rpartition("-")
        if given.accelerator_type is not None and machines.accelerator.name not in sizes_of(given.accelerator_type):
            fields["accelerator_type"] = model
    return {name: value for name, value in fields.items() if getattr(given, name) != value}


def plan_on(
    spec: Spec,
    machines: Machines,
    model_dir: str,
    steps: int | None,
    longest: int | None = None,
    choosable: frozenset[Planned] | None = None,
    most_workers: int = 1,
    copied_bytes: int = COPIED,
) -> JobPlan:
    """Plan a job with the spec's number of workers.

    Args:
        model_dir: a directory with the model's config.json.
        steps: number of steps of the whole run; None: not known.
        longest: tokens of the longest row, if it is known and shorter than `data.seq_len`.
        choosable: fields that the plan may choose; None: those that the spec leaves out.
        most_workers: largest number of workers of the job.
        copied_bytes: see `jobs.planning.memory.memory_of_process`.

    Raises:
        DataError: the model's configuration cannot be read or built.
    """
    config = config_of(spec, model_dir)
    if problems := config_problems(config, spec):
        raise DataError(f"model.path {spec.model.path}: {'; '.join(problems)}")
    precision = precision_of(spec.train, machines.accelerator.has_bf16 and not machines.is_cpu)
    rows = spec.with_value("data.seq_len", min(longest or spec.data.seq_len, spec.data.seq_len))
    can_checkpoint = not architecture_problems(config, spec.with_value("train.gradient_checkpointing", True))
    fixed = _fixed_fields(spec, can_checkpoint)
    choosable = (choosable_fields(spec) if choosable is None else choosable) - fixed
    spec_strategy, batching = strategy_of(spec), plan_batching(spec)
    trace = _tracer(rows, config, model_dir, precision, not machines.is_cpu)

    def options_with(fields: frozenset[Planned]) -> tuple[Option, ...]:
        return options(spec_strategy, batching, fields, trace, machines, most_workers, copied_bytes)

    traced = trace(spec_strategy)
    plan = JobPlan(
        machines=machines,
        precision=precision,
        parameters=traced.parameters,
        trained=traced.trained,
        seq_len=rows.data.seq_len,
        options=options_with(choosable),
        choosable=choosable,
        total_steps=steps,
        note="; ".join(filter(None, (traced.note, _note_of_precision(spec, machines)))) or None,
        can_checkpoint=can_checkpoint,
    )
    if plan.chosen is not None:
        return plan
    more = sufficient_machines(spec_strategy, partial(_batching_on, spec), choosable, trace, machines, copied_bytes)
    # Without a global batch in the spec, another micro-batch would change the rows of a step.
    all_fields = choosable | (PLANNED - fixed - (set() if _keeps_its_batch(spec) else {"per_device_train_batch_size"}))
    other = None if all_fields == choosable else dataclasses.replace(plan, options=options_with(all_fields)).chosen
    return dataclasses.replace(plan, sufficient=more, rewritten=other)


def _fixed_fields(spec: Spec, can_checkpoint: bool) -> set[Planned]:
    """Return the fields that no plan may change: what the model or its kernel cannot do otherwise."""
    fixed: set[Planned] = set() if can_checkpoint else {"gradient_checkpointing"}
    if spec.packed and spec.model.attn_implementation == "flash_attention_2":
        # With this kernel, samples are kept apart in batches of one row only.
        fixed.add("per_device_train_batch_size")
    return fixed


def _batching_on(spec: Spec, workers: int) -> Batching | None:
    try:
        return plan_batching(with_workers(spec, workers))
    except SpecError:  # a step has fewer rows than that
        return None


def _tracer(
    rows: Spec, config: dict[str, Any], model_dir: str, precision: Precision, on_gpu: bool
) -> Callable[[Strategy], ModelTrace]:
    """Return a function that traces a training step with a strategy, once for all strategies that compute the same.

    Args:
        rows: the spec with the length of its longest row.
    """
    traces = dict[tuple[bool, int], ModelTrace]()
    make = _maker(rows, model_dir, precision, on_gpu)

    def trace(strategy: Strategy) -> ModelTrace:
        asked = rows.with_value("train.gradient_checkpointing", strategy.gradient_checkpointing)
        asked = as_traced(asked.with_value("train.zero.stage", strategy.stage), config)
        key = strategy.gradient_checkpointing, asked.train.zero.stage
        if key not in traces:
            traces[key] = cached_trace(asked, model_dir, precision, on_gpu, partial(make, asked))
        return traces[key]

    return trace


def _note_of_precision(spec: Spec, machines: Machines) -> str | None:
    is_open = spec.train.bf16 is None and not spec.train.fp16
    if machines.is_cpu or machines.accelerator.has_bf16 or not is_open:
        return None
    return f"planned in fp32, because {machines.accelerator.name} has no bf16; train.fp16: true is several times faster"


def _maker(rows: Spec, model_dir: str, precision: Precision, on_gpu: bool) -> Callable[[Spec], ModelTrace]:
    """Return a function that makes a trace, and that builds the model once for all traces."""

    @cache
    def tracer() -> ModelTracer:
        with quick_imports():  # torch and transformers take seconds
            from jobs.preflight.model_trace import ModelTracer
            from jobs.training.model.load import import_model_classes

            import_model_classes()
            if rows.method.kind != "full":
                import peft  # noqa: F401
        return ModelTracer(rows, model_dir, precision, on_gpu)

    def make(asked: Spec) -> ModelTrace:
        made = tracer()
        try:
            return made.trace(asked)
        except InputError:
            raise
        except Exception as error:  # configurations and model classes may raise anything
            raise DataError(
                f"model.path {rows.model.path}: a training step of this model cannot be traced "
                f"({type(error).__name__}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}), so its memory is not "
                "known. A run trains it without a plan"
            ) from error

    return make


def config_of(spec: Spec, model_dir: str) -> dict[str, Any]:
    """Read config.json. Raises DataError."""
    path = os.path.join(model_dir, "config.json")
    if not os.path.isfile(path):
        raise DataError(f"model.path {spec.model.path}: there is no config.json. Give the directory of a model")
    try:
        config = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. Use the file that was released with the model") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} does not contain a JSON object. Use the file that was released with the model")
    return config


def choosable_fields(spec: Spec) -> frozenset[Planned]:
    """Return the fields that the spec leaves out and that change only memory and time.

    Without a global batch, the micro-batch is part of what is computed, so it is not one of them.
    """
    choosable = PLANNED - spec.train.model_fields_set
    return choosable if _keeps_its_batch(spec) else choosable - {"per_device_train_batch_size"}


def _keeps_its_batch(spec: Spec) -> bool:
    """Whether the spec gives the rows of a step, so that a change of the micro-batch does not change them."""
    train = spec.train
    whole = train.global_batch_size is not None or train.global_batch_tokens is not None
    return whole and train.gradient_accumulation_steps is None


def machines_for(spec: Spec, gangs: int = 1) -> Machines:
    """Return the machines that the spec's section `resources` describes.

    Args:
        gangs: that share this machine, if the workers have no GPU.

    Raises:
        InputError: it asks for GPUs without a type, or the type is unknown.
    """
    resources = spec.resources
    if not resources.gpus_per_worker:
        memory = memory_here().limit_bytes // (gangs * resources.num_workers)
        return Machines(1, resources.num_workers, cpu_worker(memory, resources.cpus_per_worker))
    if resources.accelerator_type is None:
        raise SpecError(
            "the type of the GPUs is not known: give --on, such as --on "
            f"{resources.num_workers}xH100-80, or resources.accelerator_type in the spec"
        )
    name = resources.accelerator_type
    if len(sizes := sizes_of(name)) > 1:  # Ray's name does not tell the size
        on = " or ".join(f"--on {resources.num_workers}x{size}" for size in sizes)
        raise SpecError(f"resources.accelerator_type: {name} is made with several sizes of memory: give {on}")
    return machines_with(resources.num_workers, accelerator_of(name))


def cpu_worker(memory: int, cores: int) -> Accelerator:
    """Describe a worker without GPU: its memory in bytes, and the speed of this number of cores."""

    def measured() -> tuple[float, float]:
        from jobs.preflight.cpu_speed import cpu_speed  # imports torch, which takes seconds

        return cpu_speed(threads)

    threads = min(cores, cpus_here())
    flops, copied = cached_cpu_speed(threads, measured)
    return Accelerator(
        name=CPU,
        memory_gib=memory / GIB,
        bandwidth_gb_s=copied / 1e9,
        tflops=flops / 1e12,
        fp32_tflops=flops / 1e12,
        link_gb_s=_LOCAL_GB_S,
        host_gb_s=copied / 1e9,
        network_gb_s=_LOCAL_GB_S,
        host_gib=0.0,
        has_bf16=False,
    )


def _length(spec: Spec, model_dir: str, counts_tokens: bool) -> tuple[int | None, float | None]:
    """Return the steps and tokens of the run; None if they depend on data that is not prepared yet."""
    if spec.train.max_steps is not None and not counts_tokens:
        return spec.train.max_steps, None
    with contextlib.suppress(InputError):  # `validate` tells what is wrong with the data
        prepared = Prepared.find(prepared_root(spec.storage_path, fingerprint(spec, model_dir)[0]))
        if prepared is not None:
            split = prepared.split("train")
            return step_plan(spec, split).total_steps, tokens_per_run(spec, split)
    return spec.train.max_steps, None
