"""Passes of a server that fail are seen from outside."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from cluster.errors import BackendUnreachable
from orchestrator.http.metrics import Meters
from orchestrator.queue.errors import NotLeader
from orchestrator.server.passes import ControlLoop, run_passes


class _Controller:
    def __init__(self) -> None:
        self.error: Exception | None = None

    def step(self) -> bool:
        if self.error is not None:
            raise self.error
        return True


class _EventLog:
    def write_new(self) -> None:
        pass


def test_the_queue_counts_as_stuck_after_three_failures_in_a_row_and_moves_again_after_one_success() -> None:
    controller: Any = _Controller()
    event_log: Any = _EventLog()
    election: Any = None
    meters = Meters()
    passes = ControlLoop(controller, election, event_log, meters, lambda text: None, (), lambda: None)

    def pass_over() -> tuple[str, float]:
        with contextlib.suppress(Exception):
            passes.step()
        return passes.trouble(), meters.registry.get_sample_value("fleetune_leader") or 0.0

    assert pass_over() == ("", 1.0)
    controller.error = RuntimeError("a fault")
    assert [pass_over()[0] for _ in range(2)] == ["", ""]
    trouble, leads = pass_over()
    assert "the last 3 passes" in trouble and leads == 0.0
    assert meters.registry.get_sample_value("fleetune_passes_failing") == 3.0
    controller.error = BackendUnreachable("the machines do not answer, and the server can do nothing about it")
    assert pass_over()[0] == "" and passes.unanswered() == str(controller.error)
    controller.error = None
    assert pass_over() == ("", 1.0) and passes.unanswered() == ""


def test_a_term_that_runs_out_during_the_actions_after_a_pass_ends_them_without_a_failure() -> None:
    done = list[str]()

    def too_late() -> None:
        done.append("too late")
        raise NotLeader("another server leads")

    controller: Any = _Controller()
    event_log: Any = _EventLog()
    election: Any = None
    after = (lambda: done.append("first"), too_late, lambda: done.append("never"))
    ControlLoop(controller, election, event_log, Meters(), lambda text: None, after, lambda: None).step()
    assert done == ["first", "too late"]


def test_the_end_of_a_trouble_is_told_so_that_it_can_be_understood_alone() -> None:
    stop, said, errors = threading.Event(), list[str](), [BackendUnreachable("no Ray dashboard answers"), None]

    def step() -> None:
        error = errors.pop(0)
        if not errors:
            stop.set()
        if error is not None:
            raise error

    run_passes(step, stop, threading.Event(), said.append, every_s=0.0)
    assert said == ["no Ray dashboard answers", "passes over the queue succeed again"]
