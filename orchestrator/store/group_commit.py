"""Calls of many threads, carried out together by one of them.

A commit waits for the disk, and databases let one writer in at a time. While one thread writes, the others' calls
gather, and the next one writes them all in one go: a hundred clients cost little more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from orchestrator.queue.errors import StoreBroken

Question = TypeVar("Question")
Answer = TypeVar("Answer")

MOST = 100  # calls in one go


class Call(Generic[Question, Answer]):
    """One call of one thread. Whoever carries it out sets the answer or the error."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.its_turn = threading.Event()  # it has been carried out, or its thread is to do that for all

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Gathering(Generic[Question, Answer]):
    """`carry_out` settles every call that it is given; what it raises is the answer to those that it has not."""

    def __init__(self, carry_out: Callable[[list[Call[Question, Answer]]], None]) -> None:
        self._carry_out = carry_out
        self._lock = threading.Lock()
        self._waiting: list[Call[Question, Answer]] = []
        self._busy = False

    @property
    def waiting(self) -> int:
        """Calls that nobody has begun to carry out."""
        return len(self._waiting)

    def ask(self, question: Question) -> Answer:
        """Raises what is the answer to this call."""
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
        except BaseException:  # as Ctrl-C: nobody may wait for this thread to serve
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
