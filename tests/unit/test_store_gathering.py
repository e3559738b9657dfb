"""Calls of many threads that are carried out together."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from orchestrator.store.group_commit import MOST, Call, Gathering


class Doubling:
    """Doubles numbers, and knows which it was given together. The first time it waits to be let go."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.go = threading.Event()
        self.gathering = Gathering[int, int](self.carry_out)

    def carry_out(self, calls: list[Call[int, int]]) -> None:
        self.together.append([call.question for call in calls])
        self.go.wait(10.0)
        for call in calls:
            if call.question < 0:
                raise ValueError(f"{call.question} is negative")
            call.answer = 2 * call.question

    def ask(self, numbers: list[int]) -> list[Future[int]]:
        """In threads of their own; all but the first wait when it returns."""
        pool = ThreadPoolExecutor(len(numbers))
        futures = []
        for count, number in enumerate(numbers):
            futures.append(pool.submit(self.gathering.ask, number))
            deadline = time.monotonic() + 10.0
            while (len(self.together), self.gathering.waiting) != (1, count) and time.monotonic() < deadline:
                time.sleep(0.001)
        pool.shutdown(wait=False)
        return futures


def test_what_comes_while_one_is_carried_out_is_carried_out_together() -> None:
    doubling = Doubling()
    futures = doubling.ask([1, 2, 3, 4])
    doubling.go.set()
    assert [future.result(10.0) for future in futures] == [2, 4, 6, 8]
    assert doubling.together == [[1], [2, 3, 4]]
    assert doubling.gathering.ask(5) == 10


def test_an_error_is_the_answer_to_all_that_have_none_yet() -> None:
    doubling = Doubling()
    futures = doubling.ask([1, 2, -3, 4])
    doubling.go.set()
    assert [future.result(10.0) for future in futures[:2]] == [2, 4]
    for future in futures[2:]:
        with pytest.raises(ValueError, match="-3 is negative"):
            future.result(10.0)
    assert doubling.gathering.ask(5) == 10


def test_not_everything_is_carried_out_in_one_go() -> None:
    doubling = Doubling()
    futures = doubling.ask(list(range(MOST + 10)))
    doubling.go.set()
    assert [future.result(10.0) for future in futures] == [2 * number for number in range(MOST + 10)]
    assert [len(some) for some in doubling.together] == [1, MOST, 9]


def test_threads_that_keep_asking_all_get_their_own_answers() -> None:
    doubling = Doubling()
    doubling.go.set()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(doubling.gathering.ask, range(2000))) == [2 * number for number in range(2000)]
    assert sorted(number for some in doubling.together for number in some) == list(range(2000))
