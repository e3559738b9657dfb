"""Group commit: concurrent calls of many threads, carried out together by one of them.

A commit waits for the disk, and databases allow one writer at a time. While one thread writes, calls of other threads
collect, and the next thread writes all of them in one transaction. A hundred clients cost little more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from orchestrator.queue.errors import StoreBroken

Question = TypeVar("Question")
Answer = TypeVar("Answer")

MOST = 100  # most calls in one transaction


class Call(Generic[Question, Answer]):
    """One call of one thread. The thread that carries it out sets the answer or the error."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.its_turn = threading.Event()  # set when the call is done, or when its thread must carry out others

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Gathering(Generic[Question, Answer]):
    """Collects calls.

    `carry_out` settles every call that it gets; an exception goes to the calls it has not settled.
    """

    def __init__(self, carry_out: Callable[[list[Call[Question, Answer]]], None]) -> None:
        self._carry_out = carry_out
        self._lock = threading.Lock()
        self._waiting: list[Call[Question, Answer]] = []
        self._busy = False

    @property
    def waiting(self) -> int:
        """Number of calls that are not being carried out yet."""
        return len(self._waiting)

    def ask(self, question: Question) -> Answer:
        """Make a call and wait for its answer. Raises the error of the call."""
        call: Call[Question, Answer] = Call(question)
        with self._lock:
            self._waiting.append(call)
            first, self._busy = not self._busy, True
        if not first:
            self._wait(call)
        if not call.done:
            self._serve()
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _wait(self, call: Call[Question, Answer]) -> None:
        try:
            call.its_turn.wait()
        except BaseException:  # for example Ctrl-C: other calls must not wait for this thread
            with self._lock:
                if call in self._waiting:
                    self._waiting.remove(call)
                    if call.its_turn.is_set():
                        self._choose_the_next()
            raise

    def _serve(self) -> None:
        with self._lock:
            calls, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        try:
            self._carry_out(calls)
        except Exception as error:
            _settle(calls, error)
        except BaseException:
            _settle(calls, StoreBroken("the thread that was writing this for others has been stopped"))
            raise
        finally:
            with self._lock:
                self._choose_the_next()
            for call in calls:
                call.its_turn.set()

    def _choose_the_next(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting[0].its_turn.set()


def _settle(calls: list[Call[Question, Answer]], error: Exception) -> None:
    for call in calls:
        if not call.done:
            call.error = error
