"""The base of every value that is written to a file: specs, manifests, outcomes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. It rejects unknown keys and assignments; its sequences are tuples."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
