"""A trial of a sweep: its values, its run, its progress and its scores. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec

State = Literal["waiting", "running", "paused", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """One run of the sweep, with its own values."""

    number: int
    values: dict[str, Any]  # by the names of the sweep's space
    spec: Spec
    paths: JobPaths
    total_steps: int = 0  # optimizer steps of the whole trial
    without_rungs: bool = False  # begun as a whole run of auto, or as a repeat
    repeats: int | None = None  # number of the finalist that it repeats with another seed
    impossible: str | None = None  # why its values cannot be trained
    driver: str = ""  # see `JobPaths.driver`
    state: State = "waiting"
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, judged metric), finite ones
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # for which gangs have trained it
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # why it ended before its last step
    lost: bool = False  # it has failed because gangs were lost: the next driver tries it again
    metric_failed: bool = False  # a user's metric failed, which may be mended: the next driver tries it again
    diverged: bool = False  # or its loss was not finite: another attempt would compute the same

    @property
    def score(self) -> float | None:
        """The newest score."""
        return self.scores[-1][1] if self.scores else None

    @property
    def scored_step(self) -> int | None:
        """The step after which the newest score was taken."""
        return self.scores[-1][0] if self.scores else None

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    @property
    def is_whole(self) -> bool:
        """Whether it counts as a whole run: it was begun as one, or it has continued from the only rung to its end."""
        if self.without_rungs or len(self.scores) > 1:
            return True
        is_beyond = self.state == "stopped" and self.step > (self.scored_step or 0)
        return bool(self.scores) and (self.state == "failed" or is_beyond)
