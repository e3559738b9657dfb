"""Decides when a run that no longer gets better on held-out samples ends. Pure.

The decision follows from two steps, that of the last improvement and that of the newest score, so a resume needs no
counter. The first one is kept with the best score, in every checkpoint.
"""

from __future__ import annotations

from jobs.run.checkpoints import Best
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
