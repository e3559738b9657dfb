"""A simulated queue, as compared with the one that it begins with."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.scheduling.forecast.queue_simulation import Measuring, QueueSimulation
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.scheduling.snapshot import Snapshot
from tests.support.scheduling import Job, nodes, snapshot

RUNS = Job("runs", 4, on={0: 4}, running_s=100.0, left_s=900.0, most_left_s=1000.0)


def simulated(of: Snapshot, *left_s: float) -> QueueSimulation:
    return QueueSimulation.of(of, DEFAULT, np.array(left_s), Measuring(), lambda attempt: None)


def test_what_is_known_of_a_young_job_is_known_in_the_first_simulated_pass() -> None:
    of = snapshot(nodes(8), [RUNS, Job("large", 8, left_s=3600.0), Job("short", 4, left_s=300.0)])
    first = plan(simulated(of, 900.0, 3600.0, 300.0).snapshot(), DEFAULT)
    assert (first.decisions, first.reservation) == ((expected := plan(of, DEFAULT)).decisions, expected.reservation)


def test_a_maximum_of_running_time_ends_when_it_does_whatever_time_has_passed() -> None:
    of = snapshot(nodes(8), [RUNS])
    ends_s = of.ends_s[0]
    simulation = simulated(of, 900.0)
    simulation.advance(of.now_s + 400.0)
    assert simulation.snapshot().jobs.most_left_s[0] == 600.0
    assert simulation.snapshot().ends_s[0] == pytest.approx(ends_s)


def test_failures_of_nodes_do_not_protect_a_job_from_preemption() -> None:
    simulation = simulated(snapshot(nodes(8), [RUNS]), 900.0)
    for _ in range(3):
        simulation.fail(0, 60.0)
        simulation.repair(0)
        simulation.decide()
    assert simulation.jobs.interruptions[0] == 0
    assert simulation.jobs.most_left_s[0] == 1000.0
