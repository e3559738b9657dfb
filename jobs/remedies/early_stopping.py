"""Decides when a run that no longer gets better on held-out samples ends. Pure.

The decision follows from two steps, that of the last improvement and that of the newest score, so a resume needs no
counter. The first one is kept with the best score, in every checkpoint.
"""

from __future__ import annotations

from cluster.text import many
from jobs.run.checkpoints import Best
from jobs.run.remedies import RemedyReport
from jobs.spec.evaluation import Eval


def stops_early(rule: Eval, best: Best | None, evaluated_at: int | None) -> bool:
    """Whether the last `rule.early_stopping_patience` evaluations brought no score that is better by enough.

    Args:
        best: the best score so far, with the newest one considered.
        evaluated_at: step of the newest evaluation; None: there was none after a step.
    """
    if rule.early_stopping_patience is None or rule.eval_steps is None or best is None or evaluated_at is None:
        return False
    return evaluated_at // rule.eval_steps - best.counted_from // rule.eval_steps >= rule.early_stopping_patience


def end_report(rule: Eval, best: Best, score: float, step: int, total: int) -> RemedyReport:
    """Describe the end of a run after `step` of `total` steps, in which early stopping is on.

    Args:
        best: the best score, whose checkpoint is exported.
        score: the newest score.
    """
    assert rule.early_stopping_patience is not None
    evaluations = many(rule.early_stopping_patience, "evaluation")
    scores = f"{best.score:.4g} after step {best.step}, {score:.4g} now"
    cause = f"{best.metric} has not improved in {evaluations}: {scores}"
    advice = f"train for about {many(best.step, 'step')}, or with more data"
    if best.counted_from != best.step:  # later scores were better, but by too little
        by = f"{rule.early_stopping_threshold:g} (eval.early_stopping_threshold)"
        scores = f"the best is {scores}" if best.step != step else f"{score:.4g} now is the best"
        cause = f"{best.metric} has improved by {by} or less in each of {evaluations}: {scores}"
        advice = "lower eval.early_stopping_threshold to continue while the score improves slowly"
    return RemedyReport(
        "early_stopping",
        cause,
        f"training ends after step {step} of {total}",
        f"the checkpoint of step {best.step} is exported",
        advice,
    )
