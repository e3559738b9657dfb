"""The driver's connection to the queue: it registers, sends heartbeats and receives instructions. Light to import.

Training never depends on the connection. A server that was unreachable gets the newest values once it answers again.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from cluster.errors import FleetuneError
from cluster.settings import DriverPlace
from jobs.drivers.link.call import ANSWER_S, NoAnswer, NotUnderstood, Refused, Server
from jobs.drivers.link.messages import Answer, Beat, Instruction, Message, Register, Registered

Say = Callable[[str], None]
OnInstruction = Callable[[Instruction, str], None]
FromQueue = TypeVar("FromQueue", Registered, Answer)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SAYS_EVERY_S = 60.0
_LAST_BEAT_S: Final = 5.0  # timeout of the last heartbeat
_HURRIES_S: Final = 1.0  # interval of heartbeats while a draining run waits for an instruction
_OVER: Final = "AttemptOver"  # the server's name of this error
_BAD_REQUEST: Final = 400


class AttemptOver(FleetuneError):
    """The queue has ended this attempt and may have started another, so this driver must not write any more."""

    exit_code = 130


class Link(Protocol):
    """A driver's connection to the queue. No method raises into the training or delays it."""

    def tell(self, **known: Any) -> None:
        """Update the values that the next `Beat` reports, by field."""

    def close(self) -> None:
        """Send a last heartbeat, which may take a few seconds."""


class HttpLink:
    """The link to the servers of a queue.

    Only the queue itself can end the attempt: by `Instruction.LEAVE`, or by an error named `AttemptOver` with the id of
    the queue that has started this driver. Any other answer may come from a proxy or from the server of another queue,
    and counts as no answer. After that, the next server of the queue is asked.
    """

    def __init__(self, place: DriverPlace, say: Say) -> None:
        """`say` prints a line for people."""
        self._place, self._say = place, say
        self._servers = [Server(url, place.token) for url in dict.fromkeys((place.url, *place.other_urls))]
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False
        self._order = Instruction.GO_ON
        self._hurries = False  # nodes are being taken away, and the driver waits for an instruction

    def register(self) -> Registered:
        """Ask what to run, until a server of the queue answers; there is no time limit.

        Raises:
            AttemptOver: another attempt has replaced this one.
            NotUnderstood: the server is of an incompatible release.
            Refused: something that the job refers to no longer exists.
        """
        message = Register(
            job_id=self._place.job_id,
            queue=self._place.queue,
            attempt=self._place.attempt,
            host=os.uname().nodename,
            pid=os.getpid(),
        )
        began, said, pause_s = time.monotonic(), -_SAYS_EVERY_S, _FIRST_PAUSE_S
        while True:
            asked = self._servers[0].url
            try:
                return self._post("register", message, Registered)
            except NoAnswer as error:
                waited_s = time.monotonic() - began
                if waited_s - said >= _SAYS_EVERY_S:
                    said = waited_s
                    self._say(f"waiting for the server at {asked} ({waited_s:.0f} s so far): {error}")
            time.sleep(pause_s * random.uniform(0.7, 1.3))  # spreads the requests of many drivers that wait
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def start(self, every_s: float, on_order: OnInstruction) -> None:
        """Start the heartbeats. Each instruction except GO_ON is passed to `on_order` once, in a thread."""
        thread = threading.Thread(target=self._run, args=(every_s, on_order), name="link", daemon=True)
        thread.start()
        self._thread = thread  # not before: `close` cannot join a thread that has not started

    def tell(self, **known: Any) -> None:
        with self._lock:
            metrics = {**self._known.get("metrics", {}), **_finite(known.pop("metrics", {}))}
            self._known |= {name: value for name, value in known.items() if _is_sendable(value)}
            self._known["metrics"] = metrics
            self._hurries = self._hurries or bool(self._known.get("draining"))
        if known.keys() & {"run", "draining", "keeps"}:
            self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_LAST_BEAT_S + 1.0)

    def _run(self, every_s: float, on_order: OnInstruction) -> None:
        last = False
        while not last:
            hurries = self._hurries and self._order is Instruction.GO_ON
            self._wake.wait((min(every_s, _HURRIES_S) if hurries else every_s) * random.uniform(0.8, 1.2))
            last = self._closing.is_set()
            self._wake.clear()
            order, reason = self._beat()
            if order is not self._order and not last:
                self._order = order
                if order is not Instruction.GO_ON:
                    on_order(order, reason)
                    self._say(f"the server says: {order}{f' ({reason})' if reason else ''}")

    def _beat(self) -> tuple[Instruction, str]:
        """Send a heartbeat and return the instruction and its reason; the last ones if the server does not answer."""
        asked, place, last = self._servers[0].url, self._place, self._closing.is_set()
        try:
            with self._lock:
                known = dict(self._known)
            beat = Beat(job_id=place.job_id, queue=place.queue, attempt=place.attempt, last=last, **known)
            answer = self._post("beat", beat, Answer, _LAST_BEAT_S if last else ANSWER_S)
        except AttemptOver as error:
            return Instruction.LEAVE, str(error)
        except Exception as error:  # no error of the link may end the training
            if not self._silent:
                self._silent = True
                self._say(f"the server at {asked} does not answer; the job goes on without it: {error}")
            return self._order, ""
        if self._silent:
            self._silent = False
            self._say("the server answers again, and knows how far the job is")
        return answer.order, answer.reason

    def _post(self, what: str, message: Message, reply: type[FromQueue], timeout_s: float = ANSWER_S) -> FromQueue:
        """Send a message to the queue. Raises AttemptOver, NotUnderstood, Refused or NoAnswer."""
        try:
            return self._ask(what, message, reply, timeout_s)
        except NoAnswer:
            self._servers.append(self._servers.pop(0))
            raise

    def _ask(self, what: str, message: Message, reply: type[FromQueue], timeout_s: float) -> FromQueue:
        server = self._servers[0]
        try:
            answer = server.post(f"/v1/driver/{what}", message, reply, timeout_s)
        except Refused as error:
            if not error.error or not self._is_own(error.queue):
                raise NoAnswer(f"status {error.answered}, and not from this job's queue: {error}") from error
            if error.error == _OVER:
                known = f"attempt {self._place.attempt} of job {self._place.job_id}"
                raise AttemptOver(f"{known} is over: {error}") from error
            if error.answered != _BAD_REQUEST:
                raise NoAnswer(f"status {error.answered}: {error}") from error
            raise
        except NotUnderstood as error:
            if not self._is_own(error.queue):
                raise NoAnswer(str(error)) from error
            raise
        if not self._is_own(answer.queue):
            raise NoAnswer(f"the server at {server.url} keeps another queue than this job's")
        return answer

    def _is_own(self, queue: str) -> bool:
        """Whether the answer is from this job's queue. Older servers start drivers without an id: any queue counts."""
        return not self._place.queue or queue == self._place.queue


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Drop values that are not finite, which JSON cannot express; the run's files have them."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _is_sendable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(one, str) for one in value)
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))
