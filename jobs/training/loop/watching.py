"""Skips the update of an outlying step, counts and reports such steps, and fails the run after too many.

The rules are in `jobs.remedies.outliers`. Their arguments are the same on all ranks, and so are their decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.errors import Diverged
from jobs.remedies import outlier_text, outliers, overfitting
from jobs.remedies.excessive_rate import compared_with_base
from jobs.remedies.outliers import Outlier
from jobs.run.checkpoints import StepHistory
from jobs.run.metric_names import MAJORITY, is_worse, missing_metric
from jobs.spec.evaluation import full_name
from jobs.training.faults import IN_UPDATE
from jobs.training.loop.saving import StepSignals, best_score
from jobs.training.loop.state import LoopState, Run


def updated(run: Run, step: int, signals: StepSignals, history: StepHistory | None) -> StepSignals:
    """Update the weights unless the step is outlying, and return the signals with this decision.

    Args:
        step: number of the step, from 0.
        history: None if every update is applied.
    """
    full = len(run.plan.rows_of_step(step)) == run.plan.rows_per_step  # a smaller batch has a noisier loss
    norm: float | None = None
    outlier: Outlier | None = None

    def veto(found: float) -> bool:
        nonlocal norm, outlier
        assert history is not None
        norm = found if full else None
        outlier = outliers.outlier_of(history if full else StepHistory(), signals.loss, found)
        return outlier is not None or outliers.is_barred(history, step)

    try:
        run.engine.step(None if history is None else veto)
    except Exception as error:
        error.add_note(IN_UPDATE)
        raise
    if run.engine.overflowed():
        what = Outlier("gradients", math.inf) if math.isfinite(signals.loss) else Outlier("loss", signals.loss)
        return replace(signals, skipped=True, outlier=what)
    skipped = outlier is not None or (history is not None and outliers.is_barred(history, step))
    return replace(signals, skipped=skipped, outlier=outlier, norm=norm)


def counted(run: Run, state: LoopState, signals: StepSignals) -> LoopState:
    """Add a step to the run's history, with an event if it was skipped."""
    scaler = run.engine.loss_scaler()
    scale = None if scaler is None else scaler["cur_scale"]
    scaling = scale is not None and scale > 1.0 and run.engine.overflowed()
    is_remedy = run.job.spec.remedies.outlier_steps and not scaling
    if signals.skipped and signals.outlier is not None:
        outlier = signals.outlier
        facts: dict[str, Any] = {"step": state.step, "skipped": outlier.what, **outlier.numbers()}
        message = outlier_text.skip_message(state.step, outlier, scale)
        if is_remedy:
            rate = run.job.spec.train.learning_rate
            report = outlier_text.skip_report(state.step, outlier, state.told, rate)
            report.tell(run.reporter.event, message, stage="skip", **facts)
        else:
            run.reporter.event("warning", message, **facts)
    history = outliers.after_step(
        state.history,
        state.step - 1,
        signals.loss,
        signals.norm,
        outlier=signals.outlier if is_remedy else None,
        applied=not signals.skipped,
        scaling=scaling,
    )
    return replace(state, history=history)


def compared(run: Run, state: LoopState) -> LoopState:
    """Compare the held-out loss of the first evaluation after a step with the one before training.

    Nothing is compared after the first epoch, nor after the rate was lowered: if the loss is still high then, the
    cause is not the rate. The held-out rows may be unlike the training rows.
    """
    name = full_name("loss")
    before, now = state.metrics_before.get(name), state.metrics.get(name)
    may_act = run.job.spec.remedies.outlier_steps and state.rate_factor == 1
    if before is None or now is None or not may_act or run.plan.epoch_of_step(state.step) > 1:
        return state
    return replace(state, history=compared_with_base(state.history, before, now))


def check_skips(run: Run, state: LoopState, signals: StepSignals, last: bool) -> None:
    """Raise Diverged if too many steps change nothing, or if a step with a non-finite loss changed the weights."""
    if not signals.skipped and not math.isfinite(signals.loss):
        raise Diverged(f"the loss of step {state.step} is {signals.loss}: lower train.learning_rate, or check the data")
    rate = run.job.spec.train.learning_rate
    reason = outlier_text.failure(state.told, state.step, rate)
    if reason is None and last and signals.skipped and run.engine.partitions.optimizer_step() == 0:
        reason = outlier_text.untrained(state.step)
    if reason is not None:
        if report := outlier_text.failure_report(state.told, state.step, rate):
            report.tell(run.reporter.event, f"{report.cause}: {report.action}", stage="failure", step=state.step)
        raise Diverged(reason)


def tell_if_worse(run: Run, state: LoopState) -> None:
    """Warn if the exported model is worse on held-out rows than the one before training, or than no model.

    The metric is that of the best checkpoint if there is one, else the loss.
    """
    rule = run.job.spec.checkpoint
    metric = rule.best_metric or full_name("loss")
    after = state.exported.metrics if state.exported is not None else state.metrics
    accuracy, majority = after.get(full_name("accuracy"), math.nan), after.get(MAJORITY, math.nan)
    if accuracy <= majority < 1.0:
        said = f"eval_accuracy ({accuracy:.4g}) is not above the share of the most frequent class ({majority:.4g})"
        advice = "Train for more steps, with another train.learning_rate, or with more samples of the other classes"
        run.reporter.event(
            "warning", f"{said}: by accuracy, the model is no better than always answering that class. {advice}"
        )
    if state.trend.found and state.trend.best is not None:
        loss = after.get(full_name("loss"), math.nan)
        if loss > state.trend.best:
            said = f"the exported model has a held-out loss of {loss:.4g}, and the lowest was"
            run.reporter.event("warning", f"{said} {overfitting.format_best(state.trend)}: see `remedy`", loss=loss)
        return
    if metric not in after or metric not in state.metrics_before:
        return
    before, now = state.metrics_before[metric], after[metric]
    greater_is_better = rule.best_metric is not None and rule.greater_is_best
    if is_worse(now, before, greater_is_better=greater_is_better):
        run.reporter.event(
            "warning",
            f"{metric} is worse than before training: {now:.4g} after {before:.4g}. Lower train.learning_rate, train "
            "for fewer steps, or check that the held-out samples are like the training samples",
            metric=metric,
        )


def watched(run: Run, state: LoopState) -> LoopState:
    """Report overfitting once, after an evaluation. Not while the metric of the best checkpoint goes on improving."""
    spec, trend = run.job.spec, state.trend
    if trend.found or not overfitting.overfits(trend):
        return state
    best = best_score(spec, state)
    if best is not None and best.step > trend.best_at:
        return state
    facts = {"step": state.step, "best_step": trend.best_at, "best_loss": trend.best, "loss": trend.held_out}
    report = overfitting.report_of(trend, spec)
    report.tell(run.reporter.event, f"{report.cause}: {report.action}. For the next run: {report.advice}", **facts)
    return replace(state, trend=trend.model_copy(update={"found": True}))


def tell_missing_metric(run: Run, state: LoopState, metrics: Mapping[str, float]) -> None:
    """Warn if the first evaluation of held-out rows lacks the metric of the best checkpoint. A later one may have it.

    Args:
        metrics: all that the evaluation after the state's step reports.
    """
    spec = run.job.spec
    metric, is_first = spec.checkpoint.best_metric, (state.step == 0) == spec.eval.eval_on_start
    if metric is not None and metric not in metrics and is_first and state.evaluated_at is None:
        said = f"checkpoint.metric_for_best_model: {missing_metric(metric, metrics)}"
        run.reporter.event("warning", f"{said}. Without it no checkpoint is the best", step=state.step, metric=metric)


def tell_summary(run: Run, state: LoopState) -> None:
    """Report how many steps were skipped or repeated, and what to change; nothing if there were none."""
    step = state.step if state.exported is None else None
    if told := outlier_text.summary(state.told, run.job.spec.train.learning_rate, step):
        facts = {"remedy": outliers.REMEDY, "stage": "summary", "step": state.step}
        run.reporter.event("remedy", told, **facts, **state.history.counts())
