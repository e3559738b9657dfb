"""The plan of a run as `plan.json` keeps it, and its comparison with what was measured. Light to import."""

from __future__ import annotations

import statistics
from typing import Any, Final

from pydantic import Field

from jobs.frozen import Frozen, Shown
from jobs.planning.step_time import mean_step_s, repeated_s
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.storage.journal import Record

PLAN_VERSION: Final = 2  # version 1 is without bounds
FIRST_STEPS: Final = 3  # steps after which the remaining time is estimated from measured ones


class RunPlan(Frozen):
    """The prediction for the workers of a run, made before they start.

    Of a small job on CPUs only an upper bound of the memory is known; fields that need a trace are None then.
    """

    version: int = PLAN_VERSION
    machines: str = Field(description="Such as 8xH100-80, or 2xCPU.")
    precision: str = Field(description="fp32, bf16 or fp16.")
    is_bound: bool = Field(False, description="total_bytes is an upper bound; the model was not traced.")
    parameters: int | None = Field(None, description="Of the model, in elements.")
    chosen: dict[str, Any] = Field(
        default_factory=dict, description="Fields of `train` with the values that the plan chose."
    )
    memory: dict[str, int] = Field(default_factory=dict, description="Parts of a worker's peak memory, bytes.")
    total_bytes: int = Field(description="A worker's peak memory on its device; in host memory if it has no GPU.")
    room_bytes: int | None = Field(None, description="Memory that a worker can use there.")
    step_s: float | None = Field(None, description="Seconds of an optimizer step.")
    tokens_per_s: float | None = Field(None, description="Of all workers, padding included.")
    total_steps: int | None = Field(None, description="Steps of the whole run.")


class PlanCheck(Shown):
    """The plan of a run beside the measured values."""

    machines: str
    predicted_bytes: int = Field(description="Peak memory of a worker.")
    is_bound: bool = Field(False, description="predicted_bytes is an upper bound.")
    measured_bytes: int | None = Field(None, description="Largest peak of any rank; None: no step ended.")
    predicted_step_s: float | None = Field(None, description="Seconds of a step; None: not predicted.")
    first_steps_s: float | None = Field(
        None, description="Seconds of a step as the remaining time counts them after three steps of the last attempt."
    )
    measured_step_s: float | None = Field(None, description="Mean seconds of the steps after the third.")

    def pace_on(self, accelerator: str) -> float | None:
        """Return the measured time of a step as a multiple of the predicted one; None: not known for this accelerator.

        Args:
            accelerator: its name in the table of accelerators, such as H100-80.
        """
        measured_s = self.measured_step_s or self.first_steps_s
        if not measured_s or not self.predicted_step_s or not self.machines.endswith(f"x{accelerator}"):
            return None
        return measured_s / self.predicted_step_s


def write_plan(paths: JobPaths, plan: RunPlan) -> None:
    storage.write_bytes(paths.plan, plan.model_dump_json(indent=1).encode())


def read_plan(paths: JobPaths) -> RunPlan | None:
    """Read the newest plan of a run; None: none was made.

    Raises:
        StorageError: the file cannot be read, or a newer release wrote it.
    """
    found: RunPlan | None = storage.read_versioned(paths.plan, PLAN_VERSION, RunPlan.model_validate)
    return found


def check_of(plan: RunPlan, steps: list[Record]) -> PlanCheck:
    """Compare a plan with the steps of the run's last attempt, in order. An empty record stands for an unknown step."""
    tokens = statistics.mean([step["computed_tokens"] for step in steps[1:] if "computed_tokens" in step] or [0])

    def measured(first: int, end: int) -> list[Record]:
        return [step for step in steps[first:end] if step.get("step_time_s") is not None]

    first, later = measured(1, FIRST_STEPS), measured(FIRST_STEPS, len(steps))
    by_tokens = [one.get("computed_tokens", tokens) / tokens - 1 if tokens else 0.0 for one in first]
    peaks = [int(step["max_memory_bytes"]) for step in steps if "max_memory_bytes" in step]
    return PlanCheck(
        machines=plan.machines,
        predicted_bytes=plan.total_bytes,
        is_bound=plan.is_bound,
        measured_bytes=max(peaks, default=None),
        predicted_step_s=plan.step_s,
        first_steps_s=mean_step_s(list(map(repeated_s, first)), by_tokens) if len(first) == FIRST_STEPS - 1 else None,
        measured_step_s=statistics.mean(float(one["step_time_s"]) for one in later) if later else None,
    )
