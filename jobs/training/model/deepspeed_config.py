"""Makes DeepSpeed's configuration in one pure function. Every value is explicit; none is left on "auto"."""

from __future__ import annotations

from typing import Any

from jobs.planning import plan_batching
from jobs.planning.memory import SUB_GROUP_SIZE
from jobs.planning.precision import Precision
from jobs.spec.finetune import Spec
from jobs.spec.zero import Zero


def deepspeed_config(spec: Spec, precision: Precision) -> dict[str, Any]:
    """The configuration of the engine.

    The learning rate here is the peak; the loop sets the rate of each step. Weight decay is set per group.
    """
    train, batching = spec.train, plan_batching(spec)
    # torch's AdamW needs no compiler at the start, and no temporaries if it is fused. An offloaded optimizer is
    # DeepSpeed's, which runs on the host.
    on_device = train.zero.offload_optimizer is None
    adam = {"torch_adam": True, "fused": True} if on_device else {"torch_adam": False}
    return {
        "train_micro_batch_size_per_gpu": batching.per_device,
        "gradient_accumulation_steps": batching.accumulation,
        "train_batch_size": batching.per_device * batching.accumulation * batching.num_workers,
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.learning_rate,
                "betas": [train.adam_beta1, train.adam_beta2],
                "eps": train.adam_epsilon,
                "weight_decay": train.weight_decay,
                "adam_w_mode": True,
                **adam,
            },
        },
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000},
        # Gradients of several micro-batches are summed in fp32, so that 1 x 4 equals 4 x 1 also in bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(train.zero),
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice in each micro-batch
    }


def _zero(zero: Zero) -> dict[str, Any]:
    common: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": zero.reduce_bucket_size,
    }
    if zero.offload_optimizer is not None:
        common["offload_optimizer"] = {"device": zero.offload_optimizer, "pin_memory": True}
    if zero.stage != 3:
        return {**common, "allgather_bucket_size": zero.reduce_bucket_size, "allgather_partitions": True}
    if zero.offload_param is not None:
        common["offload_param"] = {"device": zero.offload_param, "pin_memory": True}
    if zero.offload_optimizer is None:
        common["sub_group_size"] = SUB_GROUP_SIZE
    return {
        **common,
        "stage3_prefetch_bucket_size": zero.prefetch_bucket_size,
        "stage3_param_persistence_threshold": zero.param_persistence_threshold,
        "stage3_max_live_parameters": zero.max_live_parameters,
        "stage3_max_reuse_distance": zero.max_reuse_distance,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
