"""The training loop: set up, restore, then for each step: rows, loss, backward, step, report, checkpoint.

Runs on every worker of the gang, under Ray Train or under torchrun alike (see `jobs.training.gang`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.data.order import MICRO_BATCH, StepPlan, key
from jobs.data.prepared import Prepared
from jobs.data.stream import StepRows, Stream, step_plan
from jobs.errors import RunFailed
from jobs.journal import JournalWriter, Record
from jobs.modeldir import local_model_dir
from jobs.outcome import event
from jobs.paths import JobPaths
from jobs.planning import Batching, learning_rate_at, plan_batching
from jobs.training.batch import collate, loss_sum, model_logits
from jobs.training.engine import Engine, build_engine, peak_memory_bytes
from jobs.training.evaluate import Evaluator
from jobs.training.gang import Gang
from jobs.training.job import Job


@dataclass(frozen=True)
class LoopState:
    """All that a resumed run needs beside weights and optimizer: rows and randomness follow from the step."""

    step: int = 0  # optimizer steps that are done
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # newest eval_*
    metrics_before: dict[str, float] = field(default_factory=dict)  # eval_* before the first step
    stopped: bool = False
    facts: dict[str, Any] = field(default_factory=dict)  # for the run's manifest


class Reporter:
    """Rank 0's metrics and events; on other ranks, nothing."""

    def __init__(self, paths: JobPaths, rank: int) -> None:
        self._metrics = JournalWriter(paths.metrics, "rank-0") if rank == 0 else None
        self._events = JournalWriter(paths.events, "rank-0") if rank == 0 else None

    def event(self, kind: str, message: str, **data: Any) -> None:
        if self._events is not None:
            self._events.append(event(kind, message, **data).model_dump(mode="json"))

    def step(self, record: Record) -> None:
        if self._metrics is not None:
            self._metrics.append(record)

    def close(self) -> None:
        for journal in (self._metrics, self._events):
            if journal is not None:
                journal.close()


@dataclass(frozen=True)
class Run:
    """What the loop holds on to while it runs."""

    job: Job
    gang: Gang
    engine: Engine
    plan: StepPlan
    batching: Batching
    evaluator: Evaluator | None
    reporter: Reporter
    num_targets: np.ndarray[Any, np.dtype[np.int32]]  # of every prepared row
    num_tokens: np.ndarray[Any, np.dtype[np.int32]]
    pad_token_id: int


def train(job: Job, gang: Gang) -> LoopState:
    """Train, from the newest checkpoint if there is one, to the end or until told to stop; export at the end."""
    reporter = Reporter(job.paths, gang.rank)
    try:
        run = set_up(job, gang, reporter)
        state = restore(run)
        if state.step == 0 and job.spec.eval.eval_on_start:
            state = evaluated(run, state)
        state = train_steps(run, state)
        if not state.stopped:
            finish(run, state)
        return replace(state, facts={**run.engine.facts(), "peak_memory_bytes": most_memory_bytes(gang)})
    finally:
        reporter.close()


def train_steps(run: Run, state: LoopState) -> LoopState:
    """Every step from the state's on."""
    spec, plan = run.job.spec, run.plan
    rows_of_steps = timed(run.gang.steps(stream_of(run), state.step))
    started = time.perf_counter()
    for rows, data_wait_s in rows_of_steps:
        rate = learning_rate_at(rows.step, spec.train, plan.total_steps)
        loss, stop = train_step(run, rows, rate)
        state = replace(state, step=rows.step + 1, loss=loss)
        last = state.step == plan.total_steps
        record = step_record(run, state, rate, data_wait_s, time.perf_counter() - started)
        if last or (spec.eval.eval_steps and state.step % spec.eval.eval_steps == 0):
            state = evaluated(run, state)
            record |= state.metrics
        run.reporter.step(record)
        if not np.isfinite(loss):
            raise RunFailed(f"the loss of step {state.step} is {loss}: lower train.learning_rate, or look at the data")
        if stop and not last:
            save(run, state)
            return replace(state, stopped=True)
        # The last step is always saved: nothing that happens to the export may cost the training.
        if last or (spec.checkpoint.save_steps and state.step % spec.checkpoint.save_steps == 0):
            save(run, state)
        started = time.perf_counter()
    return state


def train_step(run: Run, rows: StepRows, rate: float) -> tuple[float, bool]:
    """One optimizer step.

    The gradient is that of the mean loss over all targets of the global batch. DeepSpeed averages over ranks, hence
    the factor world_size; the count is known from the index before anything is computed.

    Returns:
        That mean loss, and whether anybody has asked the run to stop; the same on all ranks.
    """
    gang, engine = run.gang, run.engine
    targets = max(int(run.num_targets[run.plan.rows_of_step(rows.step)].sum()), 1)
    engine.set_learning_rate(rate)
    total = torch.zeros(2, dtype=torch.float64, device=gang.device)
    for number, table in enumerate(rows.micros):
        seed_micro_batch(run.job.spec.seed, rows.step, number * gang.world_size + gang.rank)
        batch = collate(table, run.job.spec.model.task, run.pad_token_id, gang.device)
        loss = loss_sum(model_logits(engine.module, batch, run.job.spec.model.task), batch.targets)
        engine.backward(loss * (gang.world_size / targets))
        engine.step()
        total[0] += loss.detach().double()
    total[1] = float(gang.stop_requested())
    dist.all_reduce(total)
    loss_of_all, stops = total.tolist()
    return loss_of_all / targets, stops > 0


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Randomness of a forward pass follows from its place in the run, never from the rank that computes it."""
    torch.manual_seed(key(seed, MICRO_BATCH, step, number) >> 1)


def timed(items: Iterator[StepRows]) -> Iterator[tuple[StepRows, float]]:
    """Each item, and the seconds that it was waited for."""
    while True:
        asked = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        yield item, time.perf_counter() - asked


def step_record(run: Run, state: LoopState, rate: float, data_wait_s: float, step_time_s: float) -> Record:
    """One line of the metrics."""
    tokens = int(run.num_tokens[run.plan.rows_of_step(state.step - 1)].sum())
    return {
        "step": state.step,
        "epoch": round(run.plan.epoch_of_step(state.step), 6),
        "loss": state.loss,
        "learning_rate": rate,
        "grad_norm": run.engine.grad_norm(),
        "tokens": tokens,
        "tokens_per_s": tokens / step_time_s,
        "step_time_s": step_time_s,
        "data_wait_s": data_wait_s,
        "max_memory_bytes": peak_memory_bytes(run.gang.device),
    }


def most_memory_bytes(gang: Gang) -> int:
    """The largest peak of any rank; a call of every rank."""
    peak = torch.tensor(peak_memory_bytes(gang.device), dtype=torch.int64, device=gang.device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)


def set_up(job: Job, gang: Gang, reporter: Reporter) -> Run:
    """Open the prepared rows, load the model sharded, build the engine."""
    prepared = Prepared.open(job.prepared_root)
    split = prepared.split("train")
    pad = prepared.manifest.pad_token_id
    reporter.event("phase", f"loading the model on {gang.world_size} workers", phase="model")
    engine = build_engine(job.spec, local_model_dir(job.model), gang, pad)
    plan = step_plan(job.spec, split)
    evaluator = Evaluator(job.spec, prepared.split("eval"), pad) if prepared.has("eval") else None
    reporter.event("plan", f"training {plan.total_steps} steps", total_steps=plan.total_steps, **engine.facts())
    return Run(
        job,
        gang,
        engine,
        plan,
        plan_batching(job.spec),
        evaluator,
        reporter,
        split.index.num_targets,
        split.index.num_tokens,
        pad,
    )


def stream_of(run: Run) -> Stream:
    return Stream(run.job.prepared_root, run.job.spec, run.gang.rank)


def restore(run: Run) -> LoopState:
    """The newest checkpoint's state, loaded into the engine; a fresh state where there is none."""
    newest = run.gang.latest_checkpoint()
    if newest is None:
        return LoopState()
    step, files = newest
    with files as folder:
        saved = run.engine.load(folder)
    run.reporter.event("phase", f"resumed from the checkpoint of step {step}", phase="resumed", step=step)
    return LoopState(step, saved.get("loss"), saved.get("metrics", {}), saved.get("metrics_before", {}))


def save(run: Run, state: LoopState) -> None:
    """Write a checkpoint; a call of every rank."""
    client = {"loss": state.loss, "metrics": state.metrics, "metrics_before": state.metrics_before}
    run.gang.save(state.step, lambda folder: run.engine.save(folder, client))
    run.reporter.event("checkpoint", f"checkpoint of step {state.step}", step=state.step)


def evaluated(run: Run, state: LoopState) -> LoopState:
    """The state with held-out metrics; the same where there are no held-out rows."""
    if run.evaluator is None:
        return state
    run.reporter.event("phase", f"evaluating on {len(run.evaluator.split):,} held-out rows", phase="evaluate")
    metrics = run.evaluator.score(run.engine.module, run.gang)
    when = "before training" if state.step == 0 else f"after step {state.step}"
    run.reporter.event("evaluated", f"{when}: {metric_text(metrics)}", step=state.step, metrics=metrics)
    before = metrics if state.step == 0 else state.metrics_before
    return replace(state, metrics=metrics, metrics_before=before)


def metric_text(metrics: dict[str, float]) -> str:
    """`accuracy 0.512  loss 0.693`: what people ask for first comes first."""
    ordered = sorted(metrics.items(), key=lambda item: item[0] in ("eval_loss", "eval_perplexity"))
    return "  ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in ordered)


def finish(run: Run, state: LoopState) -> None:
    """Export the model and read it back."""
    run.reporter.event("phase", "exporting the model", phase="export")
    difference = run.engine.export(run.job, run.gang, fixed_rows(run), run.pad_token_id)
    run.reporter.event(
        "exported",
        f"model exported and read back: logits differ by at most {difference:.1e} of their largest",
        difference=difference,
        path=run.job.paths.model,
    )


def fixed_rows(run: Run) -> Any:
    """A few rows on which the exported model must agree with the trained one."""
    split = run.evaluator.split if run.evaluator else Prepared.open(run.job.prepared_root).split("train")
    return split.read_rows(np.arange(min(4, len(split))))
