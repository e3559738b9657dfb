"""The part of a spec that decides how much memory a worker needs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jobs.planning.batching import plan_batching
from jobs.spec.finetune import Spec


@dataclass(frozen=True)
class Strategy:
    """The part of a spec that a plan may choose: sharding, offload, micro-batch. Sizes are in elements."""

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

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `train` that a plan may choose, with their values as a spec has them."""
        offload = {name: "cpu" for name in ("offload_optimizer", "offload_param") if getattr(self, name)}
        return {
            "per_device_train_batch_size": self.per_device_train_batch_size,
            "gradient_checkpointing": self.gradient_checkpointing,
            "zero": {"stage": self.stage, **offload},
        }


def keeps_frozen_inputs(spec: Spec) -> bool:
    """Whether linear layers keep their inputs until backward although they are frozen, as under ZeRO-3."""
    return spec.method.kind != "full" and spec.train.zero.stage == 3


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
    )
