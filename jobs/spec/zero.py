"""The section `train.zero` of a spec: how DeepSpeed shards a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.frozen import Frozen
from jobs.spec.bounds import Count, Elements


class Zero(Frozen):
    """DeepSpeed ZeRO. Every value is explicit; none is left on "auto"."""

    stage: Literal[1, 2, 3] = Field(3, description="1 shards the optimizer, 2 also gradients, 3 also parameters.")
    offload_optimizer: Literal["cpu"] | None = Field(None, description="Keep the optimizer's states in host memory.")
    offload_param: Literal["cpu"] | None = Field(None, description="Keep the parameters in host memory (stage 3).")
    reduce_bucket_size: Count = Field(50_000_000, description="Elements reduced at once.")
    prefetch_bucket_size: Elements = Field(50_000_000, description="Elements of parameters fetched ahead (stage 3).")
    param_persistence_threshold: Elements = Field(
        100_000, description="Parameters of fewer elements than this are never sharded (stage 3)."
    )
    max_live_parameters: Count = Field(
        1_000_000_000, description="Most elements gathered per device at once (stage 3)."
    )
    max_reuse_distance: Elements = Field(
        1_000_000_000, description="Keep a parameter gathered if it is used again within this many elements (stage 3)."
    )

    @model_validator(mode="after")
    def _parameters_are_sharded_before_they_are_offloaded(self) -> Zero:
        if self.offload_param is not None and self.stage != 3:
            raise ValueError(f"offload_param needs stage 3, but stage is {self.stage}")
        return self
