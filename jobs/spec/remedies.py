"""The section `remedies` of a spec: which troubles a run repairs by itself."""

from __future__ import annotations

from pydantic import Field

from jobs.frozen import Frozen


class Remedies(Frozen):
    """What a run may change about itself when a known trouble stops it. Each change is an event of the run."""

    out_of_memory: bool = Field(
        True, description="Out of memory: go on with a smaller micro-batch, then checkpointing, then offload."
    )
    hang: bool = Field(
        False, description="A rank that stops responding: kill it, and go on from the newest checkpoint."
    )
    outlier_steps: bool = Field(
        True, description="Skip steps of outlying loss or gradient; if they go on, roll back and lower the rate."
    )
