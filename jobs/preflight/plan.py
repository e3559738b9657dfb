"""Plans a job: traces its model without weights, and compares the ways to train it. Imports torch when it is called."""

from __future__ import annotations

import contextlib
import functools
import os

from cluster.local.memory import memory_here
from jobs.data.preparation.fingerprint import fingerprint
from jobs.data.prepared import Prepared
from jobs.errors import DataError, InputError, SpecError
from jobs.model_files.without_weights import without_weights
from jobs.planning import plan_batching, total_steps, with_workers
from jobs.planning.accelerators import CPU, GIB, Accelerator, Machines, accelerator_of
from jobs.planning.batching import Batching
from jobs.planning.job_plan import JobPlan
from jobs.planning.memory import ModelTrace, strategy_of
from jobs.planning.precision import precision_of
from jobs.planning.strategies import Free, options
from jobs.run.find import with_model_of_run
from jobs.run.paths import prepared_root
from jobs.spec.finetune import Spec

_LOCAL_GB_S = 1.0  # between workers of one machine through gloo: an assumption
_MOST_CHARACTERS = 300


def plan_job(spec: Spec, machines: Machines | None = None) -> JobPlan:
    """Plan a job on the machines; None: on those that its section `resources` describes.

    Raises:
        InputError: the spec contradicts itself or the machines, or nothing says which accelerators it has.
        DataError: the model's configuration cannot be read or built.
    """
    found = machines or machines_for(spec)
    spec = with_model_of_run(with_workers(spec, found.gpus))
    model_dir = without_weights(spec.model.path)
    if not os.path.isfile(os.path.join(model_dir, "config.json")):
        raise DataError(f"model.path {spec.model.path}: there is no config.json. Give the directory of a model")
    precision = precision_of(spec.train, found.accelerator.has_bf16 and not found.is_cpu)
    from jobs.preflight.model_trace import trace_model  # imports torch, which takes seconds

    @functools.cache
    def trace(gradient_checkpointing: bool) -> ModelTrace:
        try:
            return trace_model(spec, model_dir, precision, gradient_checkpointing)
        except Exception as error:  # configurations and model classes may raise anything
            raise DataError(
                f"model.path {spec.model.path}: a training step of this model cannot be traced: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}"
            ) from error

    batching = plan_batching(spec)
    written = strategy_of(spec)
    ways = options(written, batching, free_fields(spec), trace, found, precision)
    traced = trace(written.gradient_checkpointing)
    return JobPlan(
        machines=found,
        precision=precision,
        parameters=traced.parameters,
        seq_len=spec.data.seq_len,
        options=ways,
        free=free_fields(spec),
        total_steps=_steps(spec, model_dir, batching),
        note=traced.note,
    )


def free_fields(spec: Spec) -> frozenset[Free]:
    """Return the fields that the spec leaves out and that change only memory and time.

    Without a global batch, the micro-batch is part of what is computed, so it is not free.
    """
    train, given = spec.train, spec.train.model_fields_set
    free: set[Free] = set()
    if "gradient_checkpointing" not in given:
        free.add("gradient_checkpointing")
    if "zero" not in given:
        free.add("zero")
    whole = train.global_batch_size is not None or train.global_batch_tokens is not None
    if whole and not given & {"per_device_train_batch_size", "gradient_accumulation_steps"}:
        free.add("per_device_train_batch_size")
    return frozenset(free)


def machines_for(spec: Spec) -> Machines:
    """Return the machines that the spec's section `resources` describes.

    Raises:
        InputError: it asks for GPUs and does not say of which type, or the type is unknown.
    """
    resources = spec.resources
    if not resources.gpus_per_worker:
        return Machines(1, resources.num_workers, _cpu_worker(resources.num_workers, resources.cpus_per_worker))
    if resources.accelerator_type is None:
        raise SpecError(
            "which GPUs the job gets is not known: give --on, such as --on "
            f"{resources.num_workers}xH100-80, or resources.accelerator_type in the spec"
        )
    return Machines(1, resources.num_workers, accelerator_of(resources.accelerator_type))


def _cpu_worker(num_workers: int, cores: int) -> Accelerator:
    """Describe a worker's share of this machine: its memory, and what its cores compute and copy."""
    from jobs.preflight.cpu_speed import cpu_speed  # imports torch, which takes seconds

    flops, copied = cpu_speed(min(cores, len(os.sched_getaffinity(0))))
    return Accelerator(
        name=CPU,
        memory_gib=memory_here().limit_bytes / num_workers / GIB,
        bandwidth_gb_s=copied / 1e9,
        tflops=flops / 1e12,
        fp32_tflops=flops / 1e12,
        link_gb_s=_LOCAL_GB_S,
        host_gb_s=copied / 1e9,
        network_gb_s=_LOCAL_GB_S,
        host_gib=0.0,
        has_bf16=False,
    )


def _steps(spec: Spec, model_dir: str, batching: Batching) -> int | None:
    """Return the steps of the run; None if they depend on data that is not prepared yet."""
    if spec.train.max_steps is not None:
        return spec.train.max_steps
    with contextlib.suppress(InputError):  # `validate` tells what is wrong with the data
        prepared = Prepared.find(prepared_root(spec.storage_path, fingerprint(spec, model_dir)[0]))
        if prepared is not None:
            return total_steps(spec, len(prepared.split("train")), batching.rows)
    return None
