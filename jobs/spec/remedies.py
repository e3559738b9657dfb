"""The section `remedies` of a spec: which troubles a run repairs by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.frozen import Frozen


class Forgetting(Frozen):
    """A bound on the loss of eval.general, and what a run does when an evaluation is past it."""

    max_general_loss_increase: float | None = Field(
        None,
        gt=0.0,
        le=100.0,
        description="Largest increase of eval_general_loss, as a share of its value before training; none: no bound.",
    )
    action: Literal["lower_learning_rate", "raise_replay", "stop"] = Field(
        "lower_learning_rate",
        description="lower_learning_rate: go back to the best checkpoint that leaves half of the bound, or to the "
        "start, with half the rate, at most three times, and then stop. raise_replay: the same with three times the "
        "weight of data.train's sources with `replay`. stop: end the run. The best checkpoint within the bound that "
        "is left is exported.",
    )


class Remedies(Frozen):
    """What a run may change about itself when a known trouble stops it. Each change is an event of the run."""

    out_of_memory: bool = Field(
        True, description="Out of memory: go on with a smaller micro-batch, then checkpointing, then offload."
    )
    lost_workers: bool = Field(
        True,
        description="Workers that were killed or lost their node: start them again from the newest checkpoint.",
    )
    machine: bool = Field(
        True,
        description="A GPU, an assigned node or the storage that fails a job of a queue: leave the node, and resume "
        "elsewhere.",
    )
    hang: bool = Field(
        False, description="A rank that stops responding: kill it, and go on from the newest checkpoint."
    )
    straggler: bool = Field(
        True, description="A rank that computes slower than the others: name it and its host, and tell the queue."
    )
    outlier_steps: bool = Field(
        True,
        description="Skip steps of outlying loss or gradient; if they go on, or the loss rises for good, roll back and "
        "lower the rate.",
    )
    forgetting: Forgetting = Field(
        default_factory=Forgetting, description="What a run does when its loss on eval.general rises too much."
    )
