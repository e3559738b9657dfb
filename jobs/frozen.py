"""The base of every value that is written down: specs, manifests, outcomes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value: unknown keys are refused, nothing can be assigned, sequences are tuples."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
