"""A driver's side of `cluster.wire`: it registers, says how it goes, and hears orders. Light, for drivers that wait.

Nothing of it ever reaches the training: a server that does not answer is told the newest once it does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from cluster.settings import DriverPlace
from cluster.wire import Answer, Beat, Message, Order, Register, Registered
from jobs.errors import FleetuneError, InputError, MachinesFailed

Say = Callable[[str], None]
OnOrder = Callable[[Order, str], None]
Reply = TypeVar("Reply", bound=Message)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SAYS_EVERY_S = 60.0
_ANSWER_S: Final = 20.0  # of one request
_LAST_BEAT_S: Final = 5.0
_MOST_BYTES: Final = 32 << 20
_OVER: Final = (401, 410)


class AttemptOver(FleetuneError):
    """The server does not know this attempt any more, or has another one: nothing more may be done for it."""

    exit_code = 130


class NotUnderstood(MachinesFailed):
    """The server is of a release that speaks otherwise, and may be upgraded just now."""


class Refused(InputError):
    """The server has nothing that this attempt could run."""


class NoAnswer(Exception):
    """Nothing that helps came back; asked again later."""


class Link(Protocol):
    """From a driver to whoever it works for. No method raises into the training, or holds it up."""

    def tell(self, **known: Any) -> None:
        """What is known by now, as fields of a `Beat`; they take the place of what was known before."""

    def close(self) -> None:
        """A last beat, which may take a few seconds."""


class NullLink:
    """There is no server."""

    def tell(self, **known: Any) -> None: ...

    def close(self) -> None: ...


class HttpLink:
    """The link to a server."""

    def __init__(self, place: DriverPlace, say: Say) -> None:
        """`say`: tells people, a line at a time."""
        self._place, self._say = place, say
        self._url = urllib.parse.urlsplit(place.url)
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False
        self._order = Order.GO_ON

    def register(self) -> Registered:
        """What is to be run. Waits for as long as it takes until the server says so.

        Raises:
            AttemptOver: another attempt has taken its place.
            NotUnderstood: the server speaks otherwise.
            Refused: what the job names is not there any more.
        """
        message = Register(
            job_id=self._place.job_id, attempt=self._place.attempt, host=os.uname().nodename, pid=os.getpid()
        )
        began, said, pause_s = time.monotonic(), -_SAYS_EVERY_S, _FIRST_PAUSE_S
        while True:
            try:
                return self._post("register", message, Registered)
            except NoAnswer as error:
                waited_s = time.monotonic() - began
                if waited_s - said >= _SAYS_EVERY_S:
                    said = waited_s
                    self._say(f"waiting for the server at {self._place.url} ({waited_s:.0f} s so far): {error}")
            time.sleep(pause_s * random.uniform(0.7, 1.3))  # many drivers may wait for one server
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def start(self, every_s: float, on_order: OnOrder) -> None:
        """Send beats from now on. Orders other than to go on reach `on_order`, in a thread, once each."""
        self._thread = threading.Thread(target=self._run, args=(every_s, on_order), name="link", daemon=True)
        self._thread.start()

    def tell(self, **known: Any) -> None:
        with self._lock:
            metrics = {**self._known.get("metrics", {}), **_finite(known.pop("metrics", {}))}
            self._known |= {name: value for name, value in known.items() if _is_number_or_text(value)}
            self._known["metrics"] = metrics
        if "run" in known:
            self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_LAST_BEAT_S + 1.0)

    def _run(self, every_s: float, on_order: OnOrder) -> None:
        last = False
        while not last:
            self._wake.wait(every_s * random.uniform(0.8, 1.2))
            last = self._closing.is_set()
            self._wake.clear()
            order, reason = self._beat()
            if order is not self._order and not last:
                self._order = order
                if order is not Order.GO_ON:
                    self._say(f"the server says: {order}{f' ({reason})' if reason else ''}")
                    on_order(order, reason)

    def _beat(self) -> tuple[Order, str]:
        """What the server wants, and why; while it does not answer, what it wanted before."""
        try:
            answer = self._send()
        except AttemptOver as error:
            return Order.LEAVE, str(error)
        except Exception as error:  # whatever it is, the training goes on
            if not self._silent:
                self._silent = True
                self._say(f"the server at {self._place.url} does not answer; the job goes on without it: {error}")
            return self._order, ""
        if self._silent:
            self._silent = False
            self._say("the server answers again, and knows how far the job is")
        return answer.order, answer.reason

    def _send(self) -> Answer:
        with self._lock:
            known = dict(self._known)
        last = self._closing.is_set()
        beat = Beat(job_id=self._place.job_id, attempt=self._place.attempt, last=last, **known)
        return self._post("beat", beat, Answer, _LAST_BEAT_S if last else _ANSWER_S)

    def _post(self, what: str, message: Message, reply: type[Reply], timeout_s: float = _ANSWER_S) -> Reply:
        """Raises AttemptOver, NotUnderstood, Refused, NoAnswer."""
        try:
            status, content = self._request(f"/v1/driver/{what}", message.model_dump_json().encode(), timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        if status in _OVER:
            raise AttemptOver(f"attempt {self._place.attempt} of job {self._place.job_id} is over: {_detail(content)}")
        if status == 422:
            raise NotUnderstood(f"the server at {self._place.url} does not understand this driver: {_detail(content)}")
        if status == 400:
            raise Refused(_detail(content))
        if status != 200:
            raise NoAnswer(f"status {status}: {_detail(content)}")
        try:
            return reply.model_validate_json(content)
        except ValidationError as error:
            mistakes = "; ".join(f"{one['loc']}: {one['msg']}" for one in error.errors(include_input=False)[:3])
            raise NotUnderstood(
                f"what the server at {self._place.url} answers is of another release: {mistakes}"
            ) from None

    def _request(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """A connection of its own each time: what is between may cut one that is idle. No proxy, no redirect."""
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self._place.token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request("POST", self._url.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)


def _detail(content: bytes) -> str:
    """What an answer says is wrong, in one short line."""
    try:
        value = json.loads(content)
        text = str(value.get("message") or value.get("detail") or value) if isinstance(value, dict) else str(value)
    except ValueError:
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300] or "no reason given"


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """JSON has no NaN, and the run's own files have it."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _is_number_or_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))
