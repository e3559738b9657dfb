"""Decides what a run does when an evaluation shows that the model forgets: its loss on general text is past a bound.

All functions are pure, and their inputs are equal on all ranks, so all ranks decide alike. The loop acts in
`jobs.training.loop.forgetting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from cluster.errors import DataError
from cluster.text import many
from jobs.planning.replay import ReplayRaise, times_raised
from jobs.run.checkpoints import Best
from jobs.run.metric_names import GENERAL_LOSS, general_increase
from jobs.run.remedies import RemedyReport
from jobs.spec.remedies import Forgetting

REMEDY: Final = "forgetting"  # as in `jobs.spec.remedies`
MOST_TIMES: Final = 3  # that the rate is lowered, or the share of replay raised
_RATE_CUT: Final = 0.5
_USED: Final = 0.5  # share of the bound; a state that has used more of it passes the bound again soon, at any rate

Metrics = Mapping[str, float]


class Act(StrEnum):
    GO_BACK = "go back"  # to the best checkpoint, or to the start, and change what the rule says
    STOP = "stop"  # end the run with the best checkpoint within the bound


def is_past_bound(rule: Forgetting, before: Metrics, after: Metrics) -> bool:
    """Whether the metrics `after` are past the bound. A loss that is NaN is."""
    risen = general_increase(before, after)
    return (
        rule.max_general_loss_increase is not None
        and risen is not None
        and not (risen <= rule.max_general_loss_increase)
    )


def check_base(rule: Forgetting, before: Metrics) -> None:
    """Raise DataError if the loss before training allows no bound on its relative increase."""
    loss = before.get(GENERAL_LOSS)
    if rule.max_general_loss_increase is None or loss is None or 0.0 < loss < math.inf:
        return
    raise DataError(
        f"eval.general: the loss of the base model on general text is {loss:g}, so "
        "remedies.forgetting.max_general_loss_increase has no meaning. Check the text and the model, train in bf16 or "
        "fp32, or leave the bound out"
    )


def act_of(rule: Forgetting, before: Metrics, after: Metrics, times: int) -> Act | None:
    """Decide after an evaluation; None if it is within the bound.

    Args:
        times: how often the run has gone back for this reason before (see `times_gone_back`).
    """
    if not is_past_bound(rule, before, after):
        return None
    return Act.STOP if rule.action == "stop" or times >= MOST_TIMES else Act.GO_BACK


def times_gone_back(rule: Forgetting, rate_cuts: int, raises: Sequence[ReplayRaise]) -> int:
    """Return how often a run has gone back and changed what the rule says."""
    return times_raised(raises) if rule.action == "raise_replay" else rate_cuts


def has_room(rule: Forgetting, before: Metrics, after: Metrics) -> bool:
    """Whether a state within the bound leaves enough of it to continue from there."""
    risen, bound = general_increase(before, after), rule.max_general_loss_increase
    return bound is None or risen is None or risen <= _USED * bound


def rate_factor(cuts: int) -> float:
    """Return the factor of the learning rate of every step after this number of cuts."""
    return _RATE_CUT**cuts


def format_rate(rate: float) -> str:
    """Describe how the run continues with a lower rate. `rate`: its new maximum."""
    return f"a learning rate of at most {rate:.3g}"


def format_replay(share_before: float, share: float) -> str:
    """Describe how the run continues with another share of replay, from 0 to 1."""
    return f"{share:.1%} of the training rows from sources for replay, instead of {share_before:.1%}"


def return_report(
    rule: Forgetting, before: Metrics, after: Metrics, step: int, target: int, how: str, advice: str
) -> RemedyReport:
    """Describe the return to step `target`. `how`: what differs from then on."""
    state, again = f"the checkpoint of step {target}" if target else "the start", step - target
    action = f"the run goes back to {state} and continues with {how}"
    cause, effect = _cause(rule, before, after, step), f"{many(again, 'step')} are computed again"
    return RemedyReport(REMEDY, cause, action, effect, advice, again)


def stop_report(
    rule: Forgetting, before: Metrics, after: Metrics, step: int, total: int, best: Best | None
) -> RemedyReport:
    """Describe the end of the run after this step."""
    if best is not None:
        effect = f"the checkpoint of step {best.step} is exported, the best one within the bound"
    else:
        effect = "the last state is exported, because no evaluation was within the bound"
    share = "the sources with replay a larger weight" if rule.action == "raise_replay" else "general text a share"
    advice = f"lower train.learning_rate, or give {share} in data.train"
    action = f"training ends after step {step} of {total}"
    return RemedyReport(REMEDY, _cause(rule, before, after, step), action, effect, advice)


def _cause(rule: Forgetting, before: Metrics, after: Metrics, step: int) -> str:
    risen, bound = general_increase(before, after), rule.max_general_loss_increase
    return (
        f"the loss on general text is {after[GENERAL_LOSS]:.4g} after step {step}, {risen:.1%} above the "
        f"{before[GENERAL_LOSS]:.4g} before training (remedies.forgetting.max_general_loss_increase is {bound:g})"
    )
