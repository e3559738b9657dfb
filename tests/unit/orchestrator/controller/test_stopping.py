"""How drivers are stopped, and how often."""

from __future__ import annotations

from cluster.errors import BackendUnreachable
from cluster.testing import FakeBackend
from orchestrator.controller.drivers import Stops


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
    stops = Stops(backend, grace_s=120.0)
    for second in range(7 * 86400):
        if second % 10 == 0:
            stops.stop("job-1", float(second))
    assert backend.asked[:2] == [False, True] and all(backend.asked[1:])
    assert 160 < len(backend.asked) < 180  # once an hour, where it was 5,000 times in a week
    stops.forget_all_but({"job-1"})
    stops.stop("job-1", 7 * 86400.0)
    assert len(backend.asked) < 180
    stops.forget_all_but(set())
    stops.stop("job-1", 8 * 86400.0)
    assert backend.asked[-1] is False


def test_a_driver_of_an_attempt_that_is_over_is_ended_at_once_and_again_where_nobody_answered() -> None:
    backend = Counts()
    stops, backend.answers = Stops(backend, grace_s=120.0), False
    for second in range(3):
        try:
            stops.end("job-1", float(second))
        except BackendUnreachable:
            backend.answers = second == 1
    assert backend.asked == [True]
