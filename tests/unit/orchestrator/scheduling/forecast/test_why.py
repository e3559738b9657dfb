"""What is said of a job that waits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.capacity.inventory import Node
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.expected_start import Expected, expected_starts, next_pass_s
from orchestrator.scheduling.forecast.why import Before, Obstacle, Why, why
from orchestrator.scheduling.forecast.why_text import ends_are_known, format_expected, to_do, why_lines, why_reason
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.scheduling.snapshot import Snapshot
from tests.support.scheduling import HOUR, NOW_S, Job, nodes, snapshot

RAN_S = (1800.0,)
NOT_INTERRUPTED = dataclasses.replace(DEFAULT, preemption=False)


def explain(
    machines: Sequence[Node], jobs: Sequence[Job], policy: Policy = NOT_INTERRUPTED, row: int = -1, **more: Any
) -> tuple[Why, str]:
    moment = snapshot(machines, jobs, **more)
    found = why(moment, policy, row % len(jobs))
    return found, text_of(found, moment, policy, [job.name for job in jobs])


def text_of(found: Why, moment: Snapshot, policy: Policy, names: Sequence[str]) -> str:
    expected = ""
    if moment.waiting[found.row]:
        expected = format_expected(
            expected_starts(moment, policy, [found.row], RAN_S)[found.row], ends_are_known(found)
        )
    return "\n".join(
        [why_reason(found, moment, names), *why_lines(found, moment, names, moment.cluster.names, expected)]
    )


def test_who_holds_the_nodes_and_until_when_and_when_it_will_start() -> None:
    jobs = [Job("long", 8, {0: 8}, left_s=5 * HOUR), Job("short", 8, {1: 8}, left_s=HOUR), Job("mine", 8)]
    found, text = explain(nodes(8, 8), jobs)
    assert found.obstacle is Obstacle.FULL and found.free == 0 and found.room_on == (1,)
    assert found.room_at_s == NOW_S + HOUR
    expected = expected_starts(snapshot(nodes(8, 8), jobs), NOT_INTERRUPTED, [2], RAN_S)[2]
    assert expected.start_s == pytest.approx(HOUR)
    assert expected.earliest_s == pytest.approx(0.9 * 0.6 * HOUR)
    assert expected.latest_s == pytest.approx(1.5 * 1.6 * HOUR)
    assert "node-1: 0 of 8 free; short has 8 for about 60 min more" in text
    assert text.endswith("expected start: in 60 min (from 32 min to 2.4 h)")
    assert "\nit would have room on node-1 in 60 min\n" in text  # nobody goes before it
    assert to_do(found, "mine") == "nothing: it starts by itself"


def test_free_gpus_that_are_not_together_are_called_scattered() -> None:
    jobs = [Job("a", 4, {0: 4}), Job("b", 4, {1: 4}), Job("mine", 8)]
    found, text = explain(nodes(8, 8), jobs)
    assert found.obstacle is Obstacle.SCATTERED and (found.free, found.most_on_one) == (8, 4)
    assert "a has 4 (end unknown)" in text
    assert "it would start on node-0 once the jobs there end, and these do not say when" in text
    assert text.endswith(", if the jobs there take as long as others did lately")


def test_each_of_those_before_it_has_its_reason() -> None:
    tenants = (Tenant("a"), Tenant("g", guaranteed=((None, 1),)))
    jobs = [
        Job("busy", 2, {0: 2}, left_s=HOUR),
        Job("owner", 1, tenant=1, left_s=9 * HOUR),
        Job("urgent", 1, priority=5, left_s=9 * HOUR),
        Job("patient", 1, left_s=90 * HOUR, waited_s=50 * HOUR),
        Job("quick", 1, left_s=600.0),
        Job("earlier", 1, left_s=5 * HOUR),
        Job("mine", 1, left_s=5 * HOUR),
    ]
    found, text = explain(nodes(2), jobs, tenants=tenants)
    assert {jobs[row].name: reason for row, reason in found.before} == {
        "owner": Before.GUARANTEE,
        "urgent": Before.PRIORITY,
        "patient": Before.WAITED,
        "quick": Before.SCORE,
        "earlier": Before.SUBMITTED,
    }
    assert "5 jobs go before it (1: within its tenant's guarantee, 1: a higher priority" in text
    assert to_do(found, "mine").endswith("with a higher priority: fleetune priority mine --to N")


def test_a_limit_of_one_type_a_holder_and_a_time_are_named() -> None:
    capped = (Tenant("a", limit=((None, 2),)),)
    found, _ = explain(nodes(8), [Job("running", 2, {0: 2}), Job("mine", 1)], tenants=capped)
    assert found.obstacle is Obstacle.LIMIT
    machines = nodes(8, type="A") + nodes(8, type="B")
    capped = (Tenant("a", limit=(("A", 0),)),)
    found, text = explain(machines, [Job("running", 8, {1: 8}), Job("mine", 1)], tenants=capped)
    assert found.obstacle is Obstacle.LIMIT and "limit" in text
    found, text = explain(nodes(8), [Job("mine", 1, held=True)])
    assert found.obstacle is Obstacle.HELD and "expected" not in text
    assert to_do(found, "mine") == "fleetune resume mine lets it go on"
    moment = snapshot(nodes(8), [Job("mine", 1)])
    moment.jobs.not_before_s[0] = NOW_S + 2 * HOUR
    assert "it may start in 2.0 h" in text_of(why(moment, DEFAULT, 0), moment, DEFAULT, ["mine"])


def test_what_is_held_outside_is_counted_and_said() -> None:
    found, text = explain(nodes(8, foreign_gpus=6), [Job("mine", 4)])
    assert found.obstacle is Obstacle.FULL and found.free == 2
    assert "6 are held outside Fleetune" in text and "6 outside Fleetune" in text
    assert "would have room" not in text and "would start on" not in text  # nobody knows of it


def test_what_is_held_outside_of_a_node_without_gpus_is_counted_and_said() -> None:
    machines = nodes(0, cpus=4, foreign_cpus=3)
    found, text = explain(machines, [Job("mine", 2, cpus=1, gpus_per_worker=0)])
    assert found.obstacle is Obstacle.FULL and found.free == 1
    assert "3 are held outside Fleetune" in text and "3 outside Fleetune" in text
    assert "would have room" not in text


def test_a_job_that_runs_or_starts_now_is_told_so() -> None:
    found, text = explain(nodes(8), [Job("mine", 4)])
    assert found.obstacle is Obstacle.NONE and text.endswith("expected start: now")
    assert "nothing keeps it, and it starts within seconds" in text and to_do(found, "mine") == ""
    found, text = explain(nodes(8), [Job("mine", 4, {0: 4})])
    assert found.obstacle is Obstacle.RUNS and text.count("\n") == 0


def test_a_start_that_never_comes_is_not_made_up() -> None:
    jobs = [Job("other", 4, {0: 4}, left_s=HOUR), Job("mine", 8)]
    moment = snapshot(nodes(8, usable=False), jobs)
    assert expected_starts(moment, DEFAULT, [1], RAN_S)[1].start_s is None
    _, text = explain(nodes(8, usable=False), jobs)
    assert "not within the next weeks" in text and "(takes nothing new)" in text
    assert "no node that it could use takes anything new" in text


def test_asking_changes_nothing() -> None:
    jobs = [Job("long", 8, {0: 8}, left_s=5 * HOUR), Job("mine", 8), Job("next", 2)]
    moment = snapshot(nodes(8, 8), jobs)
    table, slots = moment.jobs.copy(), moment.cluster.slots.copy()
    why(moment, DEFAULT, 1)
    expected_starts(moment, DEFAULT, [1], RAN_S)
    assert (moment.cluster.slots == slots).all()
    assert (moment.jobs.state == table.state).all() and (moment.jobs.waited_s == table.waited_s).all()


def test_a_job_that_may_start_later_is_expected_then() -> None:
    moment = snapshot(nodes(8), [Job("mine", 1)])
    moment.jobs.not_before_s[0] = NOW_S + 2 * HOUR
    assert expected_starts(moment, DEFAULT, [0], RAN_S)[0].start_s == pytest.approx(2 * HOUR)
    assert math.isinf(moment.jobs.most_left_s[0])


def test_a_job_that_waits_for_cpus_of_a_node_with_gpus_starts_when_they_are_free() -> None:
    first, second = (Job(name, 2, cpus=4, gpus_per_worker=0, left_s=2 * HOUR) for name in ("first", "second"))
    moment = snapshot(nodes(8, cpus=8), [dataclasses.replace(first, on={0: 2}), second])
    assert expected_starts(moment, NOT_INTERRUPTED, [1], RAN_S)[1].start_s == pytest.approx(2 * HOUR)


def test_jobs_that_end_soon_after_one_another_are_planned_for_together_the_more_the_later_it_is() -> None:
    assert next_pass_s(1000.5, 1050.0, ended_s=990.0, ahead_s=500.0) == 1000.5
    assert next_pass_s(1000.5, 1050.0, ended_s=1000.0, ahead_s=0.0) == 1001.0
    assert next_pass_s(1000.5, 1050.0, ended_s=1000.0, ahead_s=1000.0) == 1020.0
    assert next_pass_s(1040.0, 1050.0, ended_s=1039.0, ahead_s=1000.0) == 1050.0
    assert next_pass_s(2000.0, 1050.0, ended_s=1000.0, ahead_s=1000.0) == 2000.0


def test_an_expected_start_says_what_it_goes_by() -> None:
    expected = Expected(600.0, 60.0, None)
    assert format_expected(expected) == "in 10 min (from 1 min or later)"
    assert format_expected(expected, known=False).endswith("if the jobs there take as long as others did lately")
    guess = format_expected(expected, known=False, seen_others=False)
    assert "This is a guess: no job has ended yet" in guess
