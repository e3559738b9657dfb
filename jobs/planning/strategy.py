"""The part of a spec that decides how much memory a worker needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from jobs.planning.batching import plan_batching
from jobs.spec.finetune import Spec
from jobs.spec.zero import Zero

# Values of `train.zero`, in elements, with which ZeRO-3 fetches few parameters in advance and needs little memory.
_SMALL_BUFFERS: Final = {
    "reduce_bucket_size": 10_000_000,
    "prefetch_bucket_size": 10_000_000,
    "max_live_parameters": 100_000_000,
    "max_reuse_distance": 0,
}


@dataclass(frozen=True)
class Strategy:
    """The part of a spec that decides about memory: sharding, offload, micro-batches. Sizes are in elements."""

    stage: Literal[1, 2, 3] = 3
    offload_optimizer: bool = False
    offload_param: bool = False
    gradient_checkpointing: bool = False
    per_device_train_batch_size: int = 1
    accumulates: bool = True  # whether an optimizer step has several forward passes
    reduce_bucket_size: int = 50_000_000
    prefetch_bucket_size: int = 50_000_000
    param_persistence_threshold: int = 100_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    per_device_eval_batch_size: int = 0  # never chosen; 0: nothing is evaluated

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `train` that a plan may choose, with their values as a spec has them."""
        offload = {name: "cpu" for name in ("offload_optimizer", "offload_param") if getattr(self, name)}
        own = {name: getattr(self, name) for name in _SMALL_BUFFERS}
        buffers = {name: size for name, size in own.items() if size != getattr(Strategy, name)}
        return {
            "per_device_train_batch_size": self.per_device_train_batch_size,
            "gradient_checkpointing": self.gradient_checkpointing,
            "zero": {"stage": self.stage, **offload, **buffers},
        }

    @property
    def has_small_buffers(self) -> bool:
        """Whether ZeRO-3 fetches so few parameters in advance that computation mostly waits for them."""
        return self.stage == 3 and self.max_live_parameters <= _SMALL_BUFFERS["max_live_parameters"]

    @property
    def with_small_buffers(self) -> Strategy:
        """The strategy with small buffers for ZeRO-3. Values that are smaller already stay."""
        return replace(self, **{name: min(size, getattr(self, name)) for name, size in _SMALL_BUFFERS.items()})


def as_traced(spec: Spec, config: Mapping[str, Any]) -> Spec:
    """Return the spec with ZeRO-2, or with ZeRO-3 if the spec has it and its trace differs from that of ZeRO-2.

    ZeRO-3 replaces linear layers (`LinearFunctionForZeroStage3` of DeepSpeed). Frozen ones then keep their inputs until
    the backward pass, and the gradients of tied weights are added in place.

    Args:
        config: the content of the model's config.json. Without `tie_word_embeddings`, weights may be tied.
    """
    differs = spec.method.kind != "full" or config.get("tie_word_embeddings", True)
    zero = Zero(stage=3 if spec.train.zero.stage == 3 and differs else 2)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"zero": zero})})


def strategy_of(spec: Spec) -> Strategy:
    """Return the part of a spec that decides about memory."""
    zero = spec.train.zero
    return Strategy(
        stage=zero.stage,
        offload_optimizer=zero.offload_optimizer is not None,
        offload_param=zero.offload_param is not None,
        gradient_checkpointing=spec.train.gradient_checkpointing,
        per_device_train_batch_size=spec.train.per_device_train_batch_size,
        accumulates=plan_batching(spec).accumulation > 1,
        reduce_bucket_size=zero.reduce_bucket_size,
        prefetch_bucket_size=zero.prefetch_bucket_size,
        param_persistence_threshold=zero.param_persistence_threshold,
        max_live_parameters=zero.max_live_parameters,
        max_reuse_distance=zero.max_reuse_distance,
        per_device_eval_batch_size=spec.eval.per_device_eval_batch_size if spec.evaluates else 0,
    )
