"""By which rules the queue is ordered. One value; the plain policies exist to be compared with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.errors import InputError


class Order(StrEnum):
    """What orders the jobs of one priority class; of equals the one that was submitted first."""

    SUBMITTED = "submitted"
    ATTAINED = "attained"  # little GPU time so far before much: two levels
    SHARE = "share"  # the tenant that has used the least of its share
    EXPECTED = "expected"  # the least expected remaining time, weighted by share; a part for those who wait longest


@dataclass(frozen=True)
class Policy:
    """The numbers of the rules; times are in seconds.

    Attributes:
        backfill: jobs may pass a gang that does not fit yet, if they do not delay it.
        preemption: whether jobs that allow it are interrupted for others.
        untold_s: what is expected of a run that has measured nothing yet: each new one gets its first minutes.
        size_exponent: expected time is divided by the gang's slots to this power, since large gangs have few chances.
        share_exponent: how much a tenant's use over its share weighs; `share_bound` bounds it to both sides.
        share_half_life_s: after so long, used GPU time counts half.
        lane_share: the part of the cluster that is for the jobs that have waited longest,
        lane_after_s: of those that have waited for so long.
        lane_expected_s: the index of such a job is at most that of a job of one GPU, of a tenant at its share, that is
            expected to take this.
        lane_stay: the wait of a running job counts so many times there, so that two do not take turns.
        most_wait_s: a job of the lane that has waited this long goes before all classes; guarantees still go first.
        margin: a job is interrupted only if its index is so many times that of the one that takes its place,
        cost_margin: and so many times what the interruption costs on top.
        protected_s: no interruption in the first minutes of an attempt.
        protected_growth: after so many interruptions that time has doubled, after twice as many tripled.
        most_interruptions: of one job.
        attained_level_s: GPU-seconds that tell the two levels of Order.ATTAINED apart.
        most_preempting: gangs that one plan makes room for by interrupting others; the next plan goes on.
        move_worth_s: others are moved, or go on with fewer workers, for a gang if it costs less than so many seconds of
            the gang's own GPUs.
        grow_worth: a running job gets more workers if that ends it earlier by so many times what it costs.
    """

    name: str
    order: Order
    backfill: bool = True
    preemption: bool = False
    untold_s: float = 1800.0
    size_exponent: float = 1.2
    share_exponent: float = 0.5
    share_bound: float = 8.0
    share_half_life_s: float = 86_400.0
    lane_share: float = 0.0
    lane_after_s: float = 6 * 3600.0
    lane_expected_s: float = 3.5 * 3600.0
    lane_stay: float = 1.1
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


DEFAULT = Policy("default", Order.EXPECTED, preemption=True, lane_share=0.35)

POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("fifo", Order.SUBMITTED, backfill=False),
        Policy("easy", Order.SUBMITTED),
        Policy(
            "las",
            Order.ATTAINED,
            preemption=True,
            margin=1.0,
            cost_margin=0.0,
            protected_s=0.0,
            most_interruptions=1_000_000,
            move_worth_s=0.0,
        ),
        Policy("fair", Order.SHARE),
        DEFAULT,
    )
}


def policy_named(name: str) -> Policy:
    """Raises InputError, with the nearest name, where there is none."""
    if name in POLICIES:
        return POLICIES[name]
    near = difflib.get_close_matches(name.lower(), POLICIES, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"there is no policy {name!r}: {guess}the policies are {', '.join(POLICIES)}")
