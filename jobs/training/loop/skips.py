"""Counts steps that DeepSpeed skips because their gradients are not finite, and decides when the run fails."""

from __future__ import annotations

from dataclasses import dataclass

# fp16 needs at most 17 skips in a row to find its loss scale: 16 halvings from 2^16 to 1, the first after two.
MOST_IN_A_ROW = 20
FEWEST_STEPS = 40  # steps before the share of skipped ones is judged
_REMEDY = (
    "Lower train.learning_rate or lengthen the warmup. Use bf16 or fp32 instead of fp16. Check the data of these "
    "steps, and the weights that the run started from."
)


@dataclass(frozen=True)
class Skips:
    """Counts of skipped steps in this worker group."""

    steps: int = 0
    in_a_row: int = 0
    counted: int = 0  # skipped steps except those in which fp16 lowered its loss scale

    def after(self, skipped: bool, scaling: bool) -> Skips:
        """Return the counts after one more step.

        Args:
            scaling: fp16 can still lower its loss scale, so a skipped step is part of its search.
        """
        return Skips(
            steps=self.steps + 1,
            in_a_row=self.in_a_row + 1 if skipped else 0,
            counted=self.counted + (skipped and not scaling),
        )

    def failure(self) -> str | None:
        """Return why the run fails and what to do; None while it may go on."""
        if self.in_a_row >= MOST_IN_A_ROW:
            return (
                f"the last {self.in_a_row} steps changed nothing: their gradients, or their losses, are not finite. "
                f"{_REMEDY}"
            )
        if self.steps >= FEWEST_STEPS and 2 * self.counted >= self.steps:
            return (
                f"{self.counted} of {self.steps} steps changed nothing: their gradients, or their losses, are not "
                f"finite. {_REMEDY}"
            )
        return None


def untrained(steps: int) -> str:
    """Explain the failure of a run in which every step was skipped."""
    return f"none of {steps} steps changed the weights: gradients, or losses, were never finite. {_REMEDY}"


def skip_message(step: int, loss_is_finite: bool, loss: float, scale: float | None) -> str:
    """Describe a skipped step in one line."""
    what = "its gradients are not finite" if loss_is_finite else f"its loss is {loss}"
    scaled = "" if scale is None else f"; the loss scale of fp16 is now {scale:g}"
    return f"step {step} is skipped and changes nothing: {what}{scaled}"
