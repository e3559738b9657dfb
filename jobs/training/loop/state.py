"""The values of the loop: the parts of a run, and the state that each step changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.data.order.digest_chain import EMPTY_CHAIN, extended
from jobs.data.order.permutation import Rows
from jobs.data.order.row_order import StepPlan, computed_tokens
from jobs.data.order.stream import Stream, step_plan
from jobs.data.prepared import Prepared, Split
from jobs.planning import Batching
from jobs.planning.replay import ReplayRaise
from jobs.remedies import forgetting, overfitting
from jobs.run.checkpoints import Best, LossTrend, StepHistory
from jobs.spec.evaluation import full_name
from jobs.training.checkpoint.reader import CheckpointReader
from jobs.training.checkpoint.writer import Checkpointer
from jobs.training.loop.evaluation import Evaluator
from jobs.training.loop.harness import Harness
from jobs.training.loop.metrics import Confusion
from jobs.training.model.engine import Engine
from jobs.training.reporter import Reporter
from jobs.training.speed_watch import SpeedWatch
from jobs.training.worker_context import WorkerContext
from jobs.training.worker_input import Job

# Fields of `LoopState` that a checkpoint's `Commit` has under the same names.
SAVED: Final = (
    "loss", "metrics", "metrics_before", "evaluated_at", "best", "set_aside", "history", "trend", "rate_cuts",
    "replay_raises",
)  # fmt: skip
_SAMPLED_ROWS = 2**16  # rows whose tokens are counted for the mean of a step


@dataclass(frozen=True)
class LoopState:
    """Everything that a resume needs besides weights and optimizer. Rows and randomness follow from the step."""

    step: int = 0  # optimizer steps that are completed
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # newest eval_* that were measured after a step
    metrics_before: dict[str, float] = field(default_factory=dict)  # eval_* before the first step
    evaluated_at: int | None = None  # step of `metrics`
    confusion: Confusion | None = None  # matches `metrics`, if this process has measured them
    best: Best | None = None
    set_aside: Best | None = None  # the best score before the run began again (see `JobPaths.set_aside`)
    chain: int = EMPTY_CHAIN  # digest chain over the rows of all steps (see `jobs.data.order.digest_chain`)
    expected_loss: float | None = None  # loss of the next step, if an earlier attempt has logged it
    save_due: bool = False  # a checkpoint was put off
    kept: bool = False  # the checkpoint of this step is complete
    stopped: bool = False
    history: StepHistory = field(default_factory=StepHistory)
    trend: LossTrend = field(default_factory=LossTrend)
    rate_cuts: int = 0  # how often forgetting has lowered the rate (see `jobs.remedies.forgetting`)
    replay_raises: tuple[ReplayRaise, ...] = ()  # when forgetting has raised the weights of replay
    exported: Best | None = None  # the earlier state that was exported in place of the last
    facts: dict[str, Any] = field(default_factory=dict)  # for the run's manifest

    @property
    def rate_factor(self) -> float:
        """The learning rate of every step is multiplied by this."""
        return self.history.rate_factor * forgetting.rate_factor(self.rate_cuts)

    @property
    def told(self) -> StepHistory:
        """The history for messages, with all cuts of the rate."""
        return self.history.model_copy(update={"rate_factor": self.rate_factor})

    def after(self, loss: float, digest: int) -> LoopState:
        """Return the state after one more step."""
        chain = extended(self.chain, digest)
        trend = overfitting.with_loss(self.trend, loss)
        return replace(self, step=self.step + 1, loss=loss, chain=chain, trend=trend, expected_loss=None, kept=False)

    def with_metrics(self, metrics: dict[str, float], confusion: Confusion | None) -> LoopState:
        """Return the state with the metrics of an evaluation after its step.

        Those before the first step are kept apart: a run that ends early does not report them as its final ones.
        """
        trend = overfitting.with_score(self.trend, metrics.get(full_name("loss")), self.step)
        if self.step == 0:
            return replace(self, metrics_before=metrics, trend=trend)
        return replace(self, metrics=metrics, trend=trend, evaluated_at=self.step, confusion=confusion)


@dataclass(frozen=True)
class Loaded:
    """What a process loads once for all its runs: the model in its engine, and the prepared rows."""

    engine: Engine
    prepared: Prepared
    unpack: bool  # without separate rows, the model would let packed samples see each other
    row_digests: npt.NDArray[np.uint64]  # of every prepared training row
    harness: Harness | None  # of tasks of lm-eval
    base_digest: str | None  # of the weights under an adapter
    device: str | None  # `Engine.device_name` of all ranks, which decides about dropout masks; None: they differ


@dataclass(frozen=True)
class Run(Loaded):
    """The parts of a run that do not change from step to step, beside those that it shares with other runs."""

    job: Job
    worker: WorkerContext
    checkpoints: Checkpointer
    reader: CheckpointReader
    split: Split  # the training rows
    plan: StepPlan
    replay_raises: tuple[ReplayRaise, ...]  # those that `plan` includes
    batching: Batching
    evaluator: Evaluator | None  # of held-out rows
    general: Evaluator | None  # of general text
    reporter: Reporter
    speeds: SpeedWatch

    def targets_of(self, *steps: int) -> int:
        return sum(int(self.split.index.num_targets[self.plan.rows_of_step(step)].sum()) for step in steps)

    def tokens_of(self, *steps: int) -> int:
        return sum(int(self.split.index.num_tokens[self.plan.rows_of_step(step)].sum()) for step in steps)

    def computed_tokens_of(self, rows: Rows, steps: int = 1) -> float:
        """Return the mean of `computed_tokens` over steps.

        Args:
            rows: of all steps in sequence; the same number for each step.
        """
        lengths, shape = self.split.index.num_tokens[rows].astype(np.int64).reshape(steps, -1), self.batching
        return float(computed_tokens(lengths, shape.per_device, shape.accumulation, shape.num_workers).mean())

    def mean_computed_tokens(self) -> float:
        """Return the mean of `computed_tokens` over the run; of a long run, over its first steps.

        A last step with fewer rows is left out.
        """
        full = self.plan.total_rows // self.plan.rows_per_step
        steps = max(min(full, -(-_SAMPLED_ROWS // self.plan.rows_per_step)), 1)
        return self.computed_tokens_of(self.plan.rows_of_steps(0, steps), steps)

    def with_raises(self, raises: tuple[ReplayRaise, ...]) -> Run:
        """Return the run with the row order in which sources for replay have more weight."""
        if raises == self.replay_raises:
            return self
        return replace(self, plan=step_plan(self.job.spec, self.split, raises), replay_raises=raises)

    def stream(self) -> Stream:
        """Return this rank's rows."""
        return Stream(self.job.prepared_root, self.job.spec, self.worker.rank, self.replay_raises)
