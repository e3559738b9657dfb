"""The DeepSpeed engine.

Only this module, `cpu_optimizer`, `partitions`, `sharding` and `export` depend on DeepSpeed's internals.
"""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.errors import DataError, RunFailed
from cluster.text import many
from jobs.model_files.directory import local_model_dir
from jobs.planning.precision import Precision, precision_of
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.training.collectives import of_all_ranks
from jobs.training.model.adapters import load_model, with_adapter_of
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.deepspeed_config import deepspeed_config
from jobs.training.model.export import Weights, export_model, verify_export
from jobs.training.model.host_memory import give_back_freed_memory, keep_freed_memory
from jobs.training.model.load import DTYPES, decays, in_one_dtype, load_base, parameter_groups, unread_by_text
from jobs.training.model.partitions import Partitions
from jobs.training.model.release import decide_release_at_once
from jobs.training.model.sharding import free_gathered_experts, gathered_together, sharded_loading
from jobs.training.worker_context import WorkerContext
from jobs.training.worker_input import Job

_COMPARED_TARGETS = 64  # targets of each row whose logits are compared in `export`
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def build_engine(spec: Spec, model_dir: str, worker: WorkerContext, pad_token_id: int) -> Engine:
    """Load the model and wrap it in an engine. Every rank must call it, inside a joined process group."""
    deepspeed = import_deepspeed(worker.device)
    deepspeed.init_distributed(dist_backend="nccl" if worker.device.type == "cuda" else "gloo", verbose=False)
    has_bf16 = worker.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = precision_of(spec.train, has_bf16)
    config = deepspeed_config(spec, precision)
    sharding = sharded_loading(spec, model_dir, config)
    model = load_model(spec, model_dir, precision, pad_token_id)
    if spec.train.zero.stage == 3:
        config["zero_optimization"] |= gathered_together(model)
        free_gathered_experts(model)
    groups = parameter_groups(model, spec.train.weight_decay)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    if precision == "fp16":  # DeepSpeed would fail at a loss scale of 1; instead, `jobs.remedies.outliers` decides
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    if spec.train.zero.stage == 3:
        decide_release_at_once(engine.optimizer.parameter_offload.get_param_coordinator())
    elif spec.train.zero.offload_optimizer is not None:
        drop_skipped_gradients(engine.optimizer)
    built = Engine(engine, spec, precision, sharding, UpdateGate(engine))
    built.partitions.share_fp32_weights()
    check_weights(spec, built.partitions, worker)
    if worker.device.type == "cpu":
        keep_freed_memory(largest_tensor_bytes(spec, model))
        give_back_freed_memory()
    return built


def check_weights(spec: Spec, partitions: Partitions, worker: WorkerContext) -> None:
    """Raise DataError on every rank if a weight of the model is NaN or infinite. Every rank must call it."""
    wrong = sorted({name for of_rank in of_all_ranks(partitions.not_finite()) for name in of_rank})
    if wrong:
        raise DataError(
            f"model.path {spec.model.path}: {len(wrong)} of {many(len(partitions.shapes), 'parameter')} have values "
            f"that are NaN or infinite; the first is {wrong[0]}. Take weights that were saved before their training "
            "diverged. In fp16, values above 65,504 are infinite"
        )


def drop_skipped_gradients(zero: Any) -> None:
    """Let ZeRO-1 and 2 with offload drop the gradients of a step that DeepSpeed skips because they are not finite.

    In half precision they would stay, and be added to those of the next step, so that no later step is finite.
    DeepSpeed calls `reset_cpu_buffers` at the end of every step.
    """
    reset = zero.reset_cpu_buffers

    def with_gradients() -> None:
        reset()
        zero.averaged_gradients.update(dict.fromkeys(zero.averaged_gradients))

    zero.reset_cpu_buffers = with_gradients


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, which reads the kind of device at its first import."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # Empty the list of operators that can be compiled here. DeepSpeed would compile one for inference on CPUs, for half
    # a minute at the first start, and to fill the list it would try every compiler in every process.
    deepspeed.ops.__compatible_ops__ = {}
    # No job uses the optimizer Muon, but every engine imports it. Its functions have a decorator that would import
    # torch's compiler, which takes most of a second in every worker.
    from deepspeed.runtime import compiler

    compiler.compile = lambda: compiler.dummy_decorator
    # On CPUs, ZeRO-3 asks in each step for the number of NUMA nodes, and DeepSpeed starts `numactl` for each answer.
    from deepspeed.utils import numa

    if not hasattr(numa.get_numa_cores, "cache_info"):
        numa.get_numa_cores = functools.cache(numa.get_numa_cores)
    return deepspeed


def largest_tensor_bytes(spec: Spec, model: torch.nn.Module) -> int:
    """Return the bytes of the largest tensor of a step: a parameter's whole gradient, or a micro-batch's logits."""
    parameter = max(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())
    config: Any = model.config
    vocabulary = int(config.get_text_config().vocab_size) if spec.model.task == "causal-lm" else 0
    return 4 * max(parameter, spec.train.per_device_train_batch_size * spec.data.seq_len * vocabulary)


class UpdateGate:
    """Replaces the optimizer's `step`, and skips an update if the caller's `veto` returns True (see `Engine.step`).

    DeepSpeed calls it for each flat partition. At this call every ZeRO stage has computed the norm of the gradient over
    all ranks, and has not changed anything. After a skipped update DeepSpeed copies the unchanged weights and frees the
    gradients as after any step. The loss scale of fp16 stays, because for DeepSpeed a skipped update is no overflow.
    """

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        adam = self._zero.optimizer
        self._update, adam.step = adam.step, self
        self._veto: Callable[[float], bool] | None = None
        self._open: bool | None = None  # None: not decided yet

    def begin(self, veto: Callable[[float], bool] | None) -> None:
        self._veto, self._open = veto, None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._open is None:
            self._open = self._veto is None or not self._veto(float(self._zero._global_grad_norm))
        return self._update(*arguments, **named) if self._open else None


@dataclass(frozen=True)
class Engine:
    """A model in training."""

    module: Any  # deepspeed.DeepSpeedEngine; called like the model
    spec: Spec
    precision: Precision
    _sharding: Any
    _gate: UpdateGate

    @property
    def pad_token_id(self) -> int:
        """The token that fills a row after its last token."""
        return int(self.module.module.config.get_text_config().pad_token_id)

    @property
    def device_name(self) -> str:
        """The kind of this rank's GPU, such as `NVIDIA H100 80GB HBM3`; `cpu` without one."""
        device = self.module.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def facts(self) -> dict[str, Any]:
        """Return the engine's part of a run's manifest."""
        model = self.module.module
        weights = Weights(model)
        sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for _, p in weights.parameters]
        count, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
        checkpointing = bool(getattr(model, "supports_gradient_checkpointing", False))
        found = {"parameters": count, "trainable": trained, "precision": self.precision, "device": self.device_name}
        return {**found, "supports_gradient_checkpointing": checkpointing}

    def set_learning_rate(self, rate: float) -> None:
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate

    def set_for(self, spec: Spec) -> Engine:
        """Apply the optimizer settings of another run with the same model, batches, precision and ZeRO settings."""
        train, zero = spec.train, self.module.optimizer
        for group in zero.param_groups:
            group["betas"], group["eps"] = (train.adam_beta1, train.adam_beta2), train.adam_epsilon
            group["weight_decay"] = train.weight_decay if group["decays"] else 0.0
        zero.clip_grad = train.max_grad_norm
        return replace(self, spec=spec)

    @torch.no_grad()
    def new_weights(self, spec: Spec, model_dir: str) -> tuple[torch.Tensor, ...]:
        """Return the flat weights, as in `Partitions.flats`, with which a new engine would start for this spec.

        They are in host memory, because a GPU may lack the room. Every rank must call it. The model is loaded again,
        because the seed decides weights that its directory lacks.
        """
        from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

        sharding = sharded_loading(spec, model_dir, deepspeed_config(spec, self.precision))
        named = dict(load_model(spec, model_dir, self.precision, self.pad_token_id).named_parameters())
        del sharding
        unset_hf_deepspeed_config()
        if self._sharding is not None:
            set_hf_deepspeed_config(self._sharding)
        flats = tuple(flat.detach().to("cpu", copy=True) for flat in self.partitions.flats)
        for piece in self.partitions.pieces:
            parameter, begin, numel = named[piece.slice.parameter], piece.slice.start, piece.slice.numel
            whole = getattr(parameter, "ds_tensor", None)  # this rank's part, if the model was loaded in shards
            part = parameter.reshape(-1)[begin : begin + numel] if whole is None else whole.reshape(-1)[:numel]
            flats[piece.flat][piece.offset : piece.offset + numel].copy_(part)
        return flats

    def restart(self, model_dir: str) -> None:
        """Load the weights with which the run started, and reset the optimizer. Every rank must call it.

        Buffers and the loss scale of fp16 stay.
        """
        self.partitions.restart(self.new_weights(self.spec, model_dir))

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of `loss`, which the caller has normalised."""
        self.module.backward(loss, scale_wrt_gas=False)

    def step(self, veto: Callable[[float], bool] | None = None) -> None:
        """Call after each backward pass. DeepSpeed updates the weights after the last one of an optimizer step.

        Args:
            veto: called before the update with the norm of the gradient, unless DeepSpeed skips the step. If it returns
                True, weights and optimizer stay as they are. It must return the same on all ranks.
        """
        self._gate.begin(veto)
        self.module.step()

    def overflowed(self) -> bool:
        """Whether DeepSpeed has skipped the last step, on all ranks, because gradients are not finite."""
        return not self.module.was_step_applied()

    def grad_norm(self) -> float | None:
        """Return the 2-norm of the last step's gradient over all parameters, before clipping."""
        norm = self.module.get_global_grad_norm()
        return None if norm is None else float(norm)

    @functools.cached_property
    def partitions(self) -> Partitions:
        """This rank's part of the training state, which a checkpoint stores."""
        return Partitions.of(self.module)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """The model's persistent buffers, which are equal on all ranks."""
        return dict(Weights(self.module.module).buffers)

    def loss_scaler(self) -> dict[str, float] | None:
        """Return the state of fp16's dynamic loss scale; None in other precisions."""
        scaler = self.module.optimizer.loss_scaler if self.precision == "fp16" else None
        return None if scaler is None else {name: float(getattr(scaler, name)) for name in _SCALER_STATE}

    def load_loss_scaler(self, state: dict[str, float] | None) -> None:
        for name, value in (state or {}).items():
            setattr(self.module.optimizer.loss_scaler, name, value if name == "cur_scale" else int(value))

    def check_groups(self, optimizer_step: int) -> None:
        """Compare the optimizer's settings for each parameter with the spec.

        Raises:
            RunFailed: a parameter would be trained with other settings, or Adam's step count differs.
        """
        train, shapes = self.spec.train, self.partitions.shapes
        unread = unread_by_text(getattr(self.module, "module", None))
        for name, found in self.partitions.groups().items():
            expected = {
                "betas": [train.adam_beta1, train.adam_beta2],
                "eps": train.adam_epsilon,
                "weight_decay": train.weight_decay if decays(name, shapes[name], unread) else 0.0,
                "step": optimizer_step,
            }
            if found != expected:
                raise RunFailed(f"after the checkpoint was read, the optimizer has {found} for {name}, not {expected}")

    def export(self, job: Job, worker: WorkerContext, rows: Any) -> float:
        """Write job.paths.model and read it back. Returns the largest difference of logits (see `verify_export`)."""
        dtype, task = DTYPES[self.precision], self.spec.model.task
        # One row at a time, with few targets: beside the training state, whole rows of logits do not fit into memory.
        batches = [
            collate(rows.slice(number, 1), task, self.pad_token_id, worker.device).with_few_columns(_COMPARED_TARGETS)
            for number in range(rows.num_rows)
        ]

        @torch.no_grad()
        def run(model: Any) -> list[torch.Tensor]:
            model.eval()
            return [model_logits(model, batch, task) for batch in batches]

        trained = run(self.module)
        self.partitions.free_gathered()  # DeepSpeed cannot gather a weight that is already being gathered
        model_dir, is_full = local_model_dir(job.model), self.spec.method.kind == "full"
        if worker.rank == 0:  # an export that was interrupted, or an older one, may have other files
            storage.remove_dir(job.paths.model)
        template = self.spec.model.chat_template
        export_model(self.module, job.paths.model, model_dir, worker.rank, dtype, is_full, template)
        size = sum(size for _, size in Weights(self.module.module).sizes)
        load = functools.partial(self._reloaded, None if is_full else model_dir, worker.device)
        difference = verify_export(job.paths.model, dtype, size, trained, run, load, worker.rank)
        self.module.train()
        return difference

    def _reloaded(self, base: str | None, device: torch.device, folder: str, sharded: bool) -> Any:
        """Read an exported directory back, sharded over the gang or whole in this process.

        Args:
            base: directory of the frozen model, if the exported directory holds an adapter.
        """
        import deepspeed
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        spec = self.spec.with_value("train.zero.stage", 3)  # the only one that DeepSpeed has without an optimizer
        config = deepspeed_config(spec, self.precision)
        del config["optimizer"]
        sharding = sharded_loading(spec, base or folder, config) if sharded else None
        model, _ = load_base(spec, base or folder, self.precision, self.pad_token_id)
        model = model if base is None else with_adapter_of(model, folder, in_fp32=False)
        if not sharded:
            return in_one_dtype(model, self.precision).to(device)
        engine, *_ = deepspeed.initialize(model=model, config=config)
        engine.kept_alive = sharding  # transformers has only a weak reference to it
        return engine


def forget_peak_memory(device: torch.device) -> None:
    """Restart the peak of `peak_memory_bytes` on a GPU. The peak of a process's resident set cannot be restarted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: the device's on a GPU, else this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
