"""Figures of simulations that are small enough to be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from orchestrator.scheduling.forecast.queue_simulation import Attempt, EndReason
from orchestrator.simulate.figures import figures, over_time, tenant_figures
from orchestrator.simulate.values import Setup, Simulated, TraceJob

KEYS = [
    "policy", "mean_jct_s", "median_jct_s", "p90_jct_s", "p99_jct_s", "mean_wait_s", "mean_bounded_slowdown",
    "utilisation", "jain", "longest_wait_s", "preemptions", "most_preemptions_of_a_job", "lost_gpu_share",
    "slowdown_of_big_gangs", "makespan_s", "wall_s",
]  # fmt: skip

# Completion after 140, 30 and 230 s; waits of 40, 0 and 30 s; slowdowns of 1.4, 1 and 1.15.
THREE = Simulated(
    jobs=(TraceJob(0, 100, 8, "a"), TraceJob(20, 30, 1, "b"), TraceJob(120, 200, 2, "b")),
    attempts=(
        Attempt(0, 0, 40, ((0, 8),), EndReason.PREEMPTED, lost_s=10),
        Attempt(1, 20, 50, ((1, 1),), EndReason.FINISHED),
        Attempt(0, 70, 140, ((0, 8),), EndReason.FINISHED),
        Attempt(2, 150, 350, ((1, 2),), EndReason.FINISHED),
    ),
    setup=Setup(nodes=2),
    wall_s=0.25,
)


def alone(duration_s: float, gpus: int = 1, start_s: float = 5.0) -> Simulated:
    """One job, submitted at 5 s."""
    attempt = Attempt(0, start_s, start_s + duration_s, ((0, gpus),), EndReason.FINISHED)
    return Simulated((TraceJob(5.0, duration_s, gpus, "a"),), (attempt,), Setup(nodes=1), 0.0)


def test_three_jobs_of_two_tenants_one_of_them_preempted() -> None:
    found = figures(THREE)
    assert [found.mean_jct_s, found.median_jct_s, found.p90_jct_s, found.p99_jct_s] == pytest.approx(
        [400 / 3, 140, 212, 228.2]
    )
    assert [found.mean_wait_s, found.longest_wait_s, found.makespan_s] == pytest.approx([70 / 3, 40, 350])
    assert [found.mean_bounded_slowdown, found.slowdown_of_big_gangs] == pytest.approx([3.55 / 3, 1.4])
    assert found.jain == pytest.approx((1.4 + 1.075) ** 2 / (2 * (1.4**2 + 1.075**2)))
    assert found.utilisation == pytest.approx((8 * (40 + 50) + 1 * 30) / (16 * 120))
    assert found.lost_gpu_share == pytest.approx(80 / 1230)
    assert (found.preemptions, found.most_preemptions_of_a_job, found.wall_s) == (1, 1, 0.25)


def test_keys_come_in_their_order_and_every_number_is_one_of_json() -> None:
    facts = asdict(figures(THREE))
    assert list(facts) == KEYS and json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert {type(value) for value in facts.values()} == {str, float, int}


def test_moves_count_as_preemptions_and_failures_of_nodes_do_not() -> None:
    attempts = tuple(
        Attempt(0, at, at + 10, ((at % 20 // 10, 1),), reason)
        for at, reason in (
            (0, EndReason.MOVED),
            (10, EndReason.NODE_FAILED),
            (20, EndReason.PREEMPTED),
            (30, EndReason.FINISHED),
        )
    )
    found = figures(replace(THREE, jobs=(TraceJob(0, 40, 1, "a"),), attempts=attempts))
    assert (found.preemptions, found.most_preemptions_of_a_job) == (2, 2)


def test_lone_job_has_no_time_to_be_in_use_and_is_fair() -> None:
    found = figures(alone(100))
    assert (found.utilisation, found.jain, found.mean_jct_s, found.slowdown_of_big_gangs) == (0.0, 1.0, 100.0, None)


def test_short_job_counts_as_60_s_long() -> None:
    assert figures(alone(2.0, start_s=6.0)).mean_bounded_slowdown == 1.0
    assert figures(alone(2.0, start_s=183.0)).mean_bounded_slowdown == pytest.approx(180 / 60)


@pytest.mark.parametrize(("gpus", "slowdown"), [(7, None), (8, 1.0), (16, 1.0)])
def test_big_gangs_begin_at_8_gpus(gpus: int, slowdown: float | None) -> None:
    assert figures(alone(100, gpus)).slowdown_of_big_gangs == slowdown


def test_rounding_makes_no_wait_negative() -> None:
    assert figures(alone(0.1 + 0.2 + 1e-15)).longest_wait_s == 0.0


def test_tenants_come_with_the_most_gpu_time_first() -> None:
    a, b = tenant_figures(THREE)
    assert (a.tenant, a.jobs, a.gpu_s, a.mean_wait_s, a.longest_wait_s) == ("a", 1, 880.0, 40.0, 40.0)
    assert (b.tenant, b.jobs, b.gpu_s, b.mean_wait_s, b.longest_wait_s) == ("b", 2, 430.0, 15.0, 30.0)
    assert b.mean_bounded_slowdown == pytest.approx(1.075)


def test_gpus_over_time_are_means_of_spans_by_tenant() -> None:
    course = over_time(THREE, 7)  # of 50 s each
    assert course.tenants == ("a", "b") and course.edges_s.tolist() == [0, 50, 100, 150, 200, 250, 300, 350]
    assert np.allclose(course.in_use, [[6.4, 4.8, 6.4, 0, 0, 0, 0], [0.6, 0, 0, 2, 2, 2, 2]])
    assert np.allclose(course.waiting, [[1.6, 3.2, 0, 0, 0, 0, 0], [0, 0, 1.2, 0, 0, 0, 0]])
