"""Steps that DeepSpeed skips since their gradients are not finite: how many may be, before the run fails."""

from __future__ import annotations

from dataclasses import dataclass

# More than fp16 needs at most to find its loss scale: from 2^16 down to 1 in halves, the first of them twice.
MOST_IN_A_ROW = 20
FEWEST_STEPS = 40  # before the share of skipped steps says something
_REMEDY = (
    "Lower train.learning_rate or lengthen the warmup. Use bf16 or fp32 instead of fp16. Look at the data of these "
    "steps, and at the weights that the run started from."
)


@dataclass(frozen=True)
class Skips:
    """Counts of this worker group."""

    steps: int = 0
    in_a_row: int = 0
    counted: int = 0  # skipped steps, without those in which fp16 lowered its loss scale

    def after(self, skipped: bool, scaling: bool) -> Skips:
        """The counts after one more step.

        Args:
            scaling: the loss scale of fp16 can still be lowered, so that a skipped step is part of its search.
        """
        return Skips(
            steps=self.steps + 1,
            in_a_row=self.in_a_row + 1 if skipped else 0,
            counted=self.counted + (skipped and not scaling),
        )

    def failure(self) -> str | None:
        """Why the run fails, and what to do; None while it may go on."""
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
    """Why a run fails whose every step was skipped."""
    return f"none of {steps} steps changed the weights: gradients, or losses, were never finite. {_REMEDY}"


def skip_message(step: int, loss_is_finite: bool, loss: float, scale: float | None) -> str:
    """One line about a skipped step."""
    what = "its gradients are not finite" if loss_is_finite else f"its loss is {loss}"
    scaled = "" if scale is None else f"; the loss scale of fp16 is now {scale:g}"
    return f"step {step} is skipped and changes nothing: {what}{scaled}"
