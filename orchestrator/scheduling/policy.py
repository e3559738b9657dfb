"""Policies: the rules that order the queue. Policies other than the default exist for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.errors import InputError
from cluster.text import nearest


class RankBy(StrEnum):
    """What orders the jobs of one priority class; of equals, the job submitted first goes first."""

    SUBMITTED = "submitted"
    ATTAINED = "attained"  # jobs with little GPU time so far go before those with much: two levels
    SHARE = "share"  # the tenant that has used least of its share goes first
    EXPECTED = "expected"  # the least expected remaining time first, weighted by share; with a starvation guard


@dataclass(frozen=True)
class Policy:
    """The parameters of the rules; times are in seconds.

    Attributes:
        order: what orders the jobs of one class.
        backfill: jobs may overtake a gang that does not fit yet, if they do not delay it.
        preemption: whether preemptible jobs are interrupted for others.
        untold_s: remaining time assumed for a run that has measured none yet, so that new jobs soon get their first
            minutes.
        size_exponent: expected time is divided by the gang's slots to this power, since large gangs fit rarely.
        share_exponent: weight of a tenant's use relative to its share.
        share_bound: bound of this relative use, upwards and (inverse) downwards.
        share_half_life_s: half-life of used GPU time.
        guarded_share: part of the cluster for the jobs that have waited longest (a starvation guard).
        guarded_after_s: least wait of a guarded job.
        guarded_expected_s: upper bound of the score of a guarded job: the score of a job of one GPU that is expected
            to take this long, of a tenant that has used its share.
        guarded_stay: multiplier on the wait of a guarded job that runs; stops two from preempting each other in turn.
        most_wait_s: a guarded job that has waited longer goes before all classes; guarantees still go first.
        margin: a job is interrupted only if its score, less the cost of the interruption, is above this many times the
            score of the waiting job.
        cost_margin: how many times the cost of an interruption is subtracted.
        protected_s: time after the start of an attempt during which it is not interrupted.
        protected_growth: number of interruptions after which the protected time is doubled; it grows linearly.
        most_interruptions: most interruptions of one job.
        attained_level_s: GPU-seconds that separate the two levels of RankBy.ATTAINED.
        most_preempting: most gangs for which one plan interrupts others; the next plan goes on.
        move_worth_s: most cost of moving or shrinking others for a gang, in seconds of the gang's own GPUs.
        grow_worth: a running job grows only if this saves more than this many times the cost of its interruption.
    """

    name: str
    order: RankBy
    backfill: bool = True
    preemption: bool = False
    untold_s: float = 1800.0
    size_exponent: float = 1.2
    share_exponent: float = 0.5
    share_bound: float = 8.0
    share_half_life_s: float = 86_400.0
    guarded_share: float = 0.0
    guarded_after_s: float = 6 * 3600.0
    guarded_expected_s: float = 3.5 * 3600.0
    guarded_stay: float = 1.1
    most_wait_s: float = 7 * 86_400.0
    margin: float = 2.5
    cost_margin: float = 1.0
    protected_s: float = 600.0
    protected_growth: int = 25
    most_interruptions: int = 100
    attained_level_s: float = 6400.0
    most_preempting: int = 32
    move_worth_s: float = 600.0
    grow_worth: float = 2.0


DEFAULT = Policy("default", RankBy.EXPECTED, preemption=True, guarded_share=0.35)

POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("fifo", RankBy.SUBMITTED, backfill=False),
        Policy("easy", RankBy.SUBMITTED),
        Policy(
            "las",
            RankBy.ATTAINED,
            preemption=True,
            margin=1.0,
            cost_margin=0.0,
            protected_s=0.0,
            most_interruptions=1_000_000,
            move_worth_s=0.0,
        ),
        Policy("fair", RankBy.SHARE),
        DEFAULT,
    )
}


def policy_named(name: str) -> Policy:
    """Look up a policy.

    Raises:
        InputError: there is no such policy; the message has the nearest name.
    """
    if name in POLICIES:
        return POLICIES[name]
    near = nearest(name, POLICIES, cutoff=0.4)
    guess = "" if near is None else f"did you mean {near!r}? "
    raise InputError(f"there is no policy {name!r}: {guess}the policies are {', '.join(POLICIES)}")
