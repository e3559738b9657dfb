"""The training loop: set up, restore, then for each step: rows, loss, backward, step, report, checkpoint.

It runs on every worker of the gang, under Ray Train and under torchrun (see `jobs.training.worker_context`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cluster.text import compact, many
from jobs.data.order.digest_chain import row_digests, to_hex
from jobs.data.order.stream import StepRows, step_plan
from jobs.data.prepared import Prepared
from jobs.model_files.directory import local_model_dir, weights_digest
from jobs.planning import learning_rate_at, plan_batching, warmup_steps
from jobs.remedies import early_stopping, outliers
from jobs.remedies.forgetting import Act, check_base
from jobs.remedies.hang import Doing
from jobs.remedies.overfitting import exports_best
from jobs.run.attempts import count_attempts
from jobs.run.metric_names import general_name, is_general, is_harness, metric_items
from jobs.run.remedies import RemedyReport
from jobs.storage.journal import Record
from jobs.training.checkpoint.host_copy import HostCopy
from jobs.training.checkpoint.reader import CheckpointReader
from jobs.training.checkpoint.writer import Checkpointer, check_buffers
from jobs.training.collectives import of_all_ranks
from jobs.training.faults import storage_to_blame
from jobs.training.loop.evaluation import Evaluator
from jobs.training.loop.forgetting import act_of, remedied, stop_of, tell_stop
from jobs.training.loop.harness import Harness
from jobs.training.loop.measuring import compared_with_earlier
from jobs.training.loop.metrics import Confusion
from jobs.training.loop.restoring import check_step, load_best, restored, rolled_back
from jobs.training.loop.saving import best_score, save_if_due
from jobs.training.loop.state import Loaded, LoopState, Run
from jobs.training.loop.step import train_step
from jobs.training.loop.watching import (
    check_skips,
    compared,
    counted,
    tell_if_worse,
    tell_missing_metric,
    tell_summary,
    watched,
)
from jobs.training.model.cpu_optimizer import load_cpu_optimizer
from jobs.training.model.engine import build_engine, peak_memory_bytes
from jobs.training.model.host_memory import give_back_freed_memory, giving_back_growth
from jobs.training.model.isolation import rows_are_unpacked
from jobs.training.model.load import DTYPES
from jobs.training.reporter import Reporter
from jobs.training.speed_watch import SpeedWatch
from jobs.training.step_clock import StepClock
from jobs.training.worker_context import WorkerContext
from jobs.training.worker_input import Job


def train(job: Job, worker: WorkerContext) -> LoopState:
    """Train from the newest checkpoint, or from the start, until the end or a request to stop; export at the end."""
    reporter = Reporter(job.paths, worker.rank)
    run = None
    try:
        run = set_up(job, worker, reporter)
        state = restored(run)
        with storage_to_blame():
            state = begun(run, state)
            if state.step < run.plan.total_steps:
                state = train_steps(run, state)
            if not state.stopped:
                state = finish(run, state)
        return replace(state, facts={**run.engine.facts(), "peak_memory_bytes": most_memory_bytes(worker)})
    finally:
        if run is not None:
            run.checkpoints.finish()
        with storage_to_blame():
            reporter.close()


def begun(run: Run, state: LoopState) -> LoopState:
    """Evaluate before the first step, if the run is new. Raises DataError: a bound on forgetting has no base."""
    if state.step > 0:
        return state
    state = evaluated(run, state)
    check_base(run.job.spec.remedies.forgetting, state.metrics_before)
    return state


def train_steps(
    run: Run, state: LoopState, until: int | None = None, score_pause: bool = True, rewound: bool = False
) -> LoopState:
    """Train every step that follows the state.

    Args:
        until: pause after this step, with a score and a checkpoint; None trains to the end.
        score_pause: evaluate before the pause.
        rewound: the run has just gone back to the state.
    """
    run = run.with_raises(state.replay_raises)
    spec, plan = run.job.spec, run.plan
    if ends_early(run, state):  # interrupted between the last step and the export, or the spec has changed since
        run.reporter.event("phase", f"no step follows: {end_of(run, state).cause}", phase="ended", step=state.step)
        return state
    if not spec.remedies.outlier_steps:  # an earlier attempt may have had it
        state = replace(state, history=outliers.without_window(state.history))
    if not rewound and act_of(run, state) is Act.GO_BACK:  # the spec has a lower bound than when the state was saved
        return train_steps(run, remedied(run, state), until, score_pause)
    warmup = warmup_steps(spec.train, plan.total_steps)
    rows_of_steps = timed(run.worker.steps(run.stream(), state.step, rewound))
    clock = StepClock(torch.get_num_threads())
    for rows, data_wait_s in rows_of_steps:
        if rows.step in plan.steps_of_changes:
            state = replace(state, history=outliers.without_window(state.history))
        rate = learning_rate_at(rows.step, spec.train, plan.total_steps) * state.rate_factor
        signals = train_step(run, rows, rate, state.history if spec.remedies.outlier_steps else None)
        run.worker.mark(Doing.OTHER)
        check_step(run, state, signals)
        state = counted(run, state.after(signals.loss, signals.digest), signals)
        state = replace(state, history=compared_with_earlier(run, state.history, state.step))
        last = state.step == plan.total_steps
        ends = last or state.step == until
        record = step_record(run, state, rate, data_wait_s, clock, signals.peak_bytes)
        rollback = outliers.rollback_of(state.history, state.step, warmup)
        scores = last or (ends and score_pause) or (spec.eval.eval_steps and state.step % spec.eval.eval_steps == 0)
        if scores and rollback is None:
            began, is_first = time.perf_counter(), state.evaluated_at is None
            state = evaluated(run, state, record)
            record |= state.metrics
            if state.evaluated_at == state.step:
                record["evaluation_s"] = time.perf_counter() - began
            if is_first and not last:
                state = compared(run, state)
                rollback = outliers.rollback_of(state.history, state.step, warmup)
        run.reporter.step(record)
        check_skips(run, state, signals, last)
        if signals.compare_speeds:
            run.speeds.compare(state.step)
        act = act_of(run, state)
        if rollback is not None or act is Act.GO_BACK:
            rows_of_steps.close()
            state = replace(state, save_due=state.save_due or signals.save)
            earlier = remedied(run, state) if rollback is None else rolled_back(run, state, rollback)
            return train_steps(run, earlier, until, score_pause, rewound=True)
        if act is Act.STOP:
            tell_stop(run, state)
        early = ends_early(run, state) and not last
        state = save_if_due(run, state, signals, ends or early)
        run.checkpoints.rest()
        if early and act is None:
            end_of(run, state).tell(run.reporter.event, step=state.step)
        if early:
            return state
        if (signals.stop or ends) and not last:
            return replace(state, stopped=signals.stop)
        clock.start()
    return state


def ends_early(run: Run, state: LoopState) -> bool:
    """Whether early stopping, or the bound on forgetting, ends the run after the state's step."""
    spec = run.job.spec
    best = best_score(spec, state)
    return act_of(run, state) is Act.STOP or early_stopping.stops_early(spec.eval, best, state.evaluated_at)


def end_of(run: Run, state: LoopState) -> RemedyReport:
    """Describe why the run ends early: the bound on forgetting, or early stopping with the scores that led to it."""
    if act_of(run, state) is Act.STOP:
        return stop_of(run, state)
    best = best_score(run.job.spec, state)
    assert best is not None
    score = state.metrics.get(best.metric, math.nan)
    return early_stopping.end_report(run.job.spec.eval, best, score, state.step, run.plan.total_steps)


def timed(items: Iterator[StepRows]) -> Generator[tuple[StepRows, float]]:
    """Yield each item with the seconds spent waiting for it."""
    asked = time.perf_counter()
    for item in items:
        yield item, time.perf_counter() - asked
        asked = time.perf_counter()


def step_record(
    run: Run, state: LoopState, rate: float, data_wait_s: float, clock: StepClock, peak_bytes: int
) -> Record:
    """Make one line of the metrics. `peak_bytes`: of all ranks, before the update."""
    tokens = run.tokens_of(state.step - 1)
    step_time_s, first_touch_s = clock.read()
    return {
        "step": state.step,
        "epoch": round(run.plan.epoch_of_step(state.step), 6),
        "loss": state.loss,
        "learning_rate": rate,
        # After an overflow, DeepSpeed still has the norm of an earlier step.
        "grad_norm": None if run.engine.overflowed() else run.engine.grad_norm(),
        "tokens": tokens,
        "computed_tokens": run.computed_tokens_of(run.plan.rows_of_step(state.step - 1)),
        "tokens_per_s": tokens / step_time_s,
        "step_time_s": step_time_s,
        "first_touch_s": first_touch_s,
        "data_wait_s": data_wait_s,
        "max_memory_bytes": max(peak_bytes, peak_memory_bytes(run.worker.device)),
        "micro_batch": run.batching.per_device,
        "device": run.device,
        "chain": to_hex(state.chain),
        "at": round(time.time(), 3),
    }


def most_memory_bytes(worker: WorkerContext) -> int:
    """Return the largest peak of any rank. Every rank must call it."""
    peak = torch.tensor(peak_memory_bytes(worker.device), dtype=torch.int64, device=worker.device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)


def set_up(job: Job, worker: WorkerContext, reporter: Reporter) -> Run:
    """Load the rows and the model, and make the run ready. Every rank must call it."""
    lost = count_attempts(job.paths) - job.earlier_attempts if worker.rank == 0 else 0
    if lost > 0:  # only under Ray, where the driver starts new worker groups
        reporter.event("warning", f"workers were lost and are started again ({lost} so far)", lost=lost)
    reporter.event("phase", f"loading the model on {many(worker.world_size, 'worker')}", phase="model")
    return ready(load(job, worker, reporter), job, worker, reporter)


def load(job: Job, worker: WorkerContext, reporter: Reporter) -> Loaded:
    """Open the prepared rows, load the sharded model and build the engine. Every rank must call it."""
    prepared = Prepared.open(job.prepared_root)
    if job.spec.train.zero.offload_optimizer:
        said = "compiling DeepSpeed's CPU optimizer: this takes a minute or two, once on each machine"
        load_cpu_optimizer(worker, lambda: reporter.event("phase", said, phase="compile"))
    model_dir = local_model_dir(job.model)
    engine = build_engine(job.spec, model_dir, worker, prepared.manifest.pad_token_id)
    unpack = rows_are_unpacked(job.spec, worker, engine.module, engine.pad_token_id, reporter)
    harness = Harness(job.spec, job.model, engine.pad_token_id) if job.spec.eval.lm_eval.tasks else None
    digests = row_digests(prepared.split("train").index.sample_ids)
    base_digest = None if job.spec.method.kind == "full" else weights_digest(model_dir)
    device, *others = set(of_all_ranks(engine.device_name))
    return Loaded(engine, prepared, unpack, digests, harness, base_digest, None if others else device)


def ready(loaded: Loaded, job: Job, worker: WorkerContext, reporter: Reporter) -> Run:
    """Make a run of the job from the loaded parts, with the engine's present weights. Every rank must call it.

    Raises:
        DataError: a checkpoint cannot hold a buffer of the model.
    """
    engine, prepared = loaded.engine, loaded.prepared
    check_buffers(engine.buffers)
    split, host = prepared.split("train"), HostCopy(engine.partitions)
    plan = step_plan(job.spec, split)

    def evaluator(name: str, metrics: tuple[str, ...]) -> Evaluator | None:
        rows = prepared.split(name) if prepared.has(name) else None
        return None if rows is None else Evaluator(job.spec, rows, metrics, engine.pad_token_id, loaded.unpack)

    run = Run(
        **vars(loaded),
        job=job,
        worker=worker,
        checkpoints=Checkpointer(
            job.paths, engine.partitions, host, worker, job.spec.checkpoint.save_total_limit, reporter
        ),
        reader=CheckpointReader(job.paths, engine.partitions, engine.buffers, host, worker.rank, reporter.event),
        split=split,
        plan=plan,
        replay_raises=(),
        batching=plan_batching(job.spec),
        evaluator=evaluator("eval", job.spec.eval.metrics),
        general=evaluator("general", ("loss", "perplexity")),
        reporter=reporter,
        speeds=SpeedWatch(worker, reporter, DTYPES[engine.precision], job.spec.remedies.straggler),
    )
    facts, what = engine.facts(), f"training {many(plan.total_steps, 'step')}"
    if job.spec.method.kind != "full":
        what += f", trainable {compact(facts['trainable'])} of {compact(facts['parameters'])} parameters"
    if worker.rank == 0:
        facts["computed_tokens_per_step"] = run.mean_computed_tokens()
    reporter.event("plan", what, total_steps=plan.total_steps, eval_steps=job.spec.eval.eval_steps, **facts)
    return run


def evaluated(run: Run, state: LoopState, record: Record | None = None) -> LoopState:
    """Return the state with the metrics of held-out rows and of general text; unchanged if there are neither.

    Before the first step, held-out rows are scored only if the spec asks for that. General text is always scored,
    because later losses on it are compared with the base model's.

    Args:
        record: the step before the evaluation. The event carries it, so that a viewer shows the step first.
    """
    metrics: dict[str, float] = {}
    confusion, began = None, time.perf_counter()
    if run.evaluator is not None and (state.step > 0 or run.job.spec.eval.eval_on_start):
        metrics, confusion = scored(run, run.evaluator, "held-out row", record)
    if run.general is not None:
        found, _ = scored(run, run.general, "row", None if metrics else record, of=" of general text")
        metrics = metrics | {general_name(name): value for name, value in found.items()}
    if run.harness is not None:
        metrics = metrics | scored_tasks(run, run.harness, None if metrics else record)
    if not metrics:
        return state
    if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
        said = f"{' and '.join(wrong)} is NaN or infinite after step {state.step}, and can choose no best checkpoint"
        advice = "Check the held-out samples, and your function if eval.metrics names one"
        run.reporter.event("warning", f"{said}. {advice}", step=state.step, not_finite=wrong)
    tell_missing_metric(run, state, metrics)
    state, seconds = state.with_metrics(metrics, confusion), time.perf_counter() - began
    if state.step == 0:
        return told_before_training(run, state, seconds)
    said = f"after step {state.step}: {metric_text(metrics)}"
    run.reporter.event("evaluated", said, step=state.step, metrics=metrics, seconds=seconds)
    return watched(run, state)


def scored(
    run: Run, evaluator: Evaluator, row: str, record: Record | None, of: str = ""
) -> tuple[dict[str, float], Confusion | None]:
    """Report that an evaluation begins, and score the evaluator's rows."""
    what = f"evaluating on {many(len(evaluator.split), row)}{of}"
    rows = evaluator.rows_at_once(run.engine.module)
    run.reporter.event("phase", what, phase="evaluate", rows=rows, **({} if record is None else {"record": record}))
    run.worker.mark(Doing.EVALUATION if evaluator is run.evaluator else Doing.GENERAL)
    with giving_back_growth():
        found = evaluator.score(run.engine.module, run.worker)
    run.worker.mark(Doing.OTHER)
    return found


def scored_tasks(run: Run, harness: Harness, record: Record | None) -> dict[str, float]:
    """Report that the tasks of lm-eval are scored, and score them."""
    what = f"evaluating on {many(len(run.job.spec.eval.lm_eval.tasks), 'task')} of lm-eval"
    # One row, as for the longest texts: a smaller batch would not help where memory is short.
    run.reporter.event("phase", what, phase="evaluate", rows=1, **({} if record is None else {"record": record}))
    run.worker.mark(Doing.OTHER)  # no bound: rank 0 may fetch the data of the tasks, while the others wait
    with giving_back_growth():
        return harness.score(run.engine.module, run.worker)


def told_before_training(run: Run, state: LoopState, seconds: float = 0.0) -> LoopState:
    """Report the metrics before the first step as an event, if there are any, and return the state."""
    if metrics := state.metrics_before:
        said = f"before training: {metric_text(metrics)}"
        run.reporter.event("evaluated", said, step=0, metrics=metrics, seconds=seconds)
    return state


def metric_text(metrics: dict[str, float]) -> str:
    """Format metrics, with the loss last, then those of general text and of lm-eval: `accuracy 0.512  loss 0.693`."""
    late = ("eval_loss", "eval_perplexity")
    ordered = sorted(
        metrics.items(), key=lambda item: 3 if is_harness(item[0]) else 2 if is_general(item[0]) else item[0] in late
    )
    return "  ".join(metric_items(dict(ordered), "{:.3f}"))


def finish(run: Run, state: LoopState) -> LoopState:
    """Export the model and read it back. In the returned state, `exported` is the earlier step that was exported."""
    spec = run.job.spec
    if exports_best(spec) or state.step < run.plan.total_steps:
        state = load_best(run, state)
    tell_summary(run, state)
    tell_if_worse(run, state)
    run.reporter.event("phase", "exporting the model", phase="export")
    run.engine.partitions.release()  # frees the memory that reading the model back needs
    give_back_freed_memory()
    difference = run.engine.export(run.job, run.worker, fixed_rows(run))
    run.reporter.event(
        "exported",
        f"model exported and read back: logits differ by at most {difference:.1e} of their largest",
        difference=difference,
        path=run.job.paths.model,
    )
    return state


def fixed_rows(run: Run) -> Any:
    """Read a few rows, on which the exported model must agree with the trained one."""
    split = run.evaluator.split if run.evaluator else run.split
    return split.read_rows(np.arange(min(4, len(split))))
