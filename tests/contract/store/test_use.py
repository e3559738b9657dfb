"""What a database adds up of leases is what pure functions find, lease by lease."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.capacity.gang import Gang
from orchestrator.controller.fair_share import counts_since_s
from orchestrator.queue.months import month_around, month_of, totals_of
from orchestrator.queue.records import Transition
from orchestrator.queue.states import Reason, State
from orchestrator.queue.store import Store
from tests.support.queuereplay import used_of
from tests.support.stores import lead, new, step

DAY_S = 86_400.0
MONTH_S, _ = month_around(1_800_000_000.0)
NOW_S = MONTH_S + 8 * DAY_S
HALF_LIFE_S = DAY_S


@pytest.fixture
def used(store: Store) -> Store:
    """Leases of a second to a month, some of which are held; gangs with and without GPUs, one of which is resized."""
    draw = random.Random(7)
    gangs = (Gang(1, 2, 1), Gang(4, 2, 8), Gang(3, 2, 0))
    submitted = store.submit([new(gang=draw.choice(gangs), tenant=draw.choice("ab")) for _ in range(120)], MONTH_S)
    epoch = lead(store)
    for number, job in enumerate(submitted):
        length_s = 10.0 ** draw.uniform(0.0, 6.4)
        granted_s = NOW_S - 10.0 ** draw.uniform(0.0, 6.4)
        granted_s = {0: MONTH_S, 1: MONTH_S - length_s, 2: NOW_S + 60.0}.get(number, granted_s)
        workers = job.gang.num_workers if number % 5 else 2
        start = Transition(job.job_id, job.state, 0, State.STARTING, Reason.GRANTED, placement=(("n0", workers),))
        (job,) = store.apply_transitions(epoch, [start], granted_s)
        (job,) = store.apply_transitions(epoch, [step(job, State.RUNNING)], granted_s)
        if number % 9:
            store.apply_transitions(epoch, [step(job, State.SUCCEEDED)], granted_s + length_s)
    return store


def test_decayed_use_is_that_of_all_leases(used: Store) -> None:
    for now_s, half_life_s in ((NOW_S, HALF_LIFE_S), (NOW_S - 1234.5, HALF_LIFE_S), (NOW_S, 10 * HALF_LIFE_S)):
        exact = used_of(used.leases(since_s=counts_since_s(now_s, half_life_s)), now_s, half_life_s)
        found = used.decayed_use(now_s, half_life_s)
        assert set(exact) == {"a", "b"} and found == {name: pytest.approx(exact[name], rel=1e-9) for name in exact}
    assert used.decayed_use(0.0, HALF_LIFE_S) == {}


def test_the_totals_of_a_month_are_exact(used: Store) -> None:
    before_s, _ = month_around(MONTH_S - 1.0)
    for month_s, now_s in ((MONTH_S, NOW_S), (before_s, NOW_S), (MONTH_S, MONTH_S + 40 * DAY_S)):
        for held in (True, False):
            leases = [lease for lease in used.leases() if held or lease.released_s is not None]
            totals = totals_of(leases, now_s)
            exact = [total for total in totals if total.month == month_of(month_s)]
            found = used.month_totals(month_s + DAY_S, now_s, held=held)
            expected: list[Any] = [
                (*one[:2], pytest.approx(one.gpu_s), pytest.approx(one.cpu_s), one.jobs) for one in exact
            ]
            assert len(exact) == 2 and found == expected
