"""Jobs are listed by several requests, between which they may change their state."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.client.readers import QueueReader
from orchestrator.queue.states import State

LIFE = (State.QUEUED, State.STARTING, State.RUNNING, State.STOPPING, State.SUCCEEDED)


class Moving:
    """A server with one job, whose state changes after some of its answers."""

    def __init__(self, states: list[State]) -> None:
        self.states = states

    def get(self, path: str, kind: Any, params: dict[str, Any]) -> SimpleNamespace:
        now = self.states[0]
        self.states = self.states[1:] or self.states
        there = (SimpleNamespace(job_id="a", state=now),) if now.value in params["state"] else ()
        return SimpleNamespace(jobs=there, next=None, set_aside=(), unanswered="")


@pytest.mark.parametrize("lived", list(itertools.combinations_with_replacement(LIFE, 3)))
def test_a_job_that_starts_or_ends_while_jobs_are_listed_is_listed_once(lived: tuple[State, ...]) -> None:
    connection: Any = Moving(list(lived))
    (found,) = QueueReader(connection, None).jobs(list(State), 50)
    assert found.job_id == "a" and LIFE.index(found.state) >= LIFE.index(lived[0])
