"""Decides when a run that no longer gets better on held-out samples ends. Pure.

The decision follows from the step of the best score and that of the newest one, so a resume needs no counter.
"""

from __future__ import annotations

from jobs.run.checkpoints import Best
from jobs.spec.evaluation import Eval


def stops_early(rule: Eval, best: Best | None, evaluated_at: int | None) -> bool:
    """Whether the last `rule.early_stopping_patience` evaluations brought no better score.

    Args:
        best: the best score so far, with the newest one considered.
        evaluated_at: step of the newest evaluation; None: there was none after a step.
    """
    if rule.early_stopping_patience is None or rule.eval_steps is None or best is None or evaluated_at is None:
        return False
    return evaluated_at // rule.eval_steps - best.step // rule.eval_steps >= rule.early_stopping_patience
