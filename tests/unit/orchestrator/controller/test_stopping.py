"""How drivers are stopped, and how often."""

from __future__ import annotations

from cluster.errors import BackendUnreachable
from cluster.testing import FakeBackend
from orchestrator.controller.drivers import Stops
from orchestrator.queue.clock import Timing


class Counts(FakeBackend):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []
        self.answers = True

    def stop(self, submission: str, *, hard: bool = False) -> None:
        if not self.answers:
            raise BackendUnreachable("not now")
        self.asked.append(hard)


def test_a_driver_that_cannot_be_ended_is_ended_again_ever_less_often() -> None:
    backend = Counts()
    stops = Stops(backend)
    for second in range(7 * 86400):
        if second % 10 == 0:
            stops.stop("job-1", float(second), 120.0)
    assert backend.asked[:2] == [False, True] and all(backend.asked[1:])
    assert 160 < len(backend.asked) < 180  # once an hour, where it was 5,000 times in a week
    stops.forget_all_but({"job-1"})
    stops.stop("job-1", 7 * 86400.0, 120.0)
    assert len(backend.asked) < 180
    stops.forget_all_but(set())
    stops.stop("job-1", 8 * 86400.0, 120.0)
    assert backend.asked[-1] is False


def test_a_driver_of_an_attempt_that_is_over_is_ended_at_once_and_again_where_nobody_answered() -> None:
    backend = Counts()
    stops, backend.answers = Stops(backend), False
    for second in range(3):
        try:
            stops.end("job-1", float(second), 120.0)
        except BackendUnreachable:
            backend.answers = second == 1
    assert backend.asked == [True]


def test_a_job_whose_checkpoints_take_long_has_time_to_save() -> None:
    timing = Timing(grace_s=120.0, most_grace_s=1800.0)
    assert [timing.grace_of(took_s) for took_s in (None, 5.0, 200.0, 7200.0)] == [120.0, 120.0, 600.0, 1800.0]
    backend = Counts()
    stops, grace_s = Stops(backend), timing.grace_of(200.0)
    for second in range(0, 601, 10):
        stops.stop("job-1", float(second), grace_s)
    assert backend.asked == [False]
    stops.stop("job-1", 610.0, grace_s)
    assert backend.asked == [False, True]
