"""Detects overfitting: the loss on held-out samples rises while the training loss goes on falling. Pure.

Early stopping and the export of the best checkpoint help against it. A run whose spec asks for neither goes on, and
reports what has happened and what to change.
"""

from __future__ import annotations

import math
from typing import Final

from cluster.text import many
from jobs.run.checkpoints import LossTrend
from jobs.run.remedies import OVERFITTING, RemedyReport
from jobs.spec.finetune import Spec

# A smaller rise above the lowest held-out loss says little. The first is a share of that loss, the second in nats.
RISE, LEAST_RISE = 0.02, 0.02
ENOUGH: Final = 2  # consecutive evaluations


def with_loss(trend: LossTrend, loss: float) -> LossTrend:
    """Add the training loss of a step. A loss that is NaN or infinite does not count."""
    if not math.isfinite(loss):
        return trend
    return trend.model_copy(update={"losses": trend.losses + loss, "steps": trend.steps + 1})


def with_score(trend: LossTrend, held_out: float | None, step: int) -> LossTrend:
    """Add the held-out loss after a step. A loss that is None, NaN or infinite does not count."""
    training = trend.losses / trend.steps if trend.steps else None
    changes: dict[str, object] = {"losses": 0.0, "steps": 0, "training": training}
    if held_out is not None and math.isfinite(held_out):
        changes["held_out"] = held_out
        if trend.best is None or held_out < trend.best:
            changes |= {"best": held_out, "best_at": step, "training_at_best": training, "worse": 0}
        else:
            is_worse = held_out > trend.best + max(RISE * trend.best, LEAST_RISE)
            changes["worse"] = trend.worse + 1 if is_worse else 0
            if trend.training_at_best is None:  # the lowest loss was measured before training
                changes["training_at_best"] = training
    return trend.model_copy(update=changes)


def overfits(trend: LossTrend) -> bool:
    """Whether the held-out loss was higher in the newest evaluations, and the training loss lower, than at the best."""
    if trend.worse < ENOUGH or trend.training is None or trend.training_at_best is None:
        return False
    return trend.training < trend.training_at_best


def exports_best(spec: Spec) -> bool:
    """Whether a run exports its best checkpoint even if it reaches its last step."""
    bounded = spec.remedies.forgetting.max_general_loss_increase is not None
    return spec.checkpoint.load_best_model_at_end or spec.eval.early_stopping_patience is not None or bounded


def format_best(trend: LossTrend) -> str:
    """Format the lowest held-out loss: `2.41 after step 40`."""
    return f"{trend.best:.4g} {f'after step {trend.best_at}' if trend.best_at else 'before training'}"


def report_of(trend: LossTrend, spec: Spec) -> RemedyReport:
    """Describe overfitting that the newest evaluation has shown, what the run does, and what to change."""
    best, now = format_best(trend), f"{trend.held_out:.4g}"
    fell = f"the training loss fell from {trend.training_at_best:.4g} to {trend.training:.4g}"
    length = f"train for about {many(trend.best_at, 'step')}" if trend.best_at else "lower train.learning_rate"
    advice = f"{length}, use more data"
    if spec.eval.early_stopping_patience is not None:
        action = "training goes on until eval.early_stopping_patience is used up, and the best checkpoint is exported"
    elif exports_best(spec):
        action = "training goes on, and the best checkpoint is exported"
    else:
        action = "training goes on, and its last state is exported, because the spec asks for no best checkpoint"
        advice += ", or set eval.early_stopping_patience: 2 and checkpoint.metric_for_best_model: loss"
    return RemedyReport(
        OVERFITTING,
        f"the run overfits: the held-out loss has risen from {best} to {now}, while {fell}",
        action,
        "nothing is changed",
        advice,
    )
