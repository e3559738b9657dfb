"""One message of `jobs.drivers.link.messages` sent to a server, and its answer. Light, for programs that wait."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.parse
from typing import Final, TypeVar

from pydantic import ValidationError

from cluster.tls import trusted
from jobs.drivers.link.messages import Message
from jobs.errors import InputError, MachinesFailed

Reply = TypeVar("Reply", bound=Message)

ANSWER_S: Final = 20.0  # of one request
_MOST_BYTES: Final = 32 << 20


class NoAnswer(Exception):
    """Nothing that helps came back; asked again later."""


class NotUnderstood(MachinesFailed):
    """The server is of a release that speaks otherwise, and may be upgraded just now. `queue`: see Refused."""

    def __init__(self, message: str, queue: str = "") -> None:
        super().__init__(message)
        self.queue = queue


class Refused(InputError):
    """The server will not have it, and will say the same again.

    Attributes:
        answered: the status of the answer.
        error: what the server calls it; '': it was not the server who answered, but something that stands before it.
        queue: id of the queue that answered; '': the answer names none.
    """

    def __init__(self, message: str, answered: int, error: str = "", queue: str = "") -> None:
        super().__init__(message)
        self.answered, self.error, self.queue = answered, error, queue


class Server:
    """Where messages go, and what shows who sends them."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self._token = url, token
        self._parts = urllib.parse.urlsplit(url)

    def post(self, path: str, message: Message, reply: type[Reply], timeout_s: float = ANSWER_S) -> Reply:
        """
        Raises:
            Refused: a status that a repetition would not change; 4xx, but for those below.
            NotUnderstood: a Fleetune server answers, and message or answer are of another release.
            NoAnswer: anything else.
        """
        try:
            status, content = self._request(path, message.model_dump_json().encode(), timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        called, queue = _problem_of(content)
        if status == 422 and called:
            raise NotUnderstood(f"the server at {self.url} does not understand this program: {_detail(content)}", queue)
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise Refused(_detail(content), status, called, queue)
        if status // 100 != 2:
            raise NoAnswer(f"status {status}: {_detail(content)}")
        try:
            return reply.model_validate_json(content)
        except ValidationError as error:
            if (named := _queue_of_message(content)) is None:
                raise NoAnswer(f"something that is no Fleetune server answers at {self.url}") from None
            mistakes = "; ".join(f"{one['loc']}: {one['msg']}" for one in error.errors(include_input=False)[:3])
            said = f"what the server at {self.url} answers is of another release: {mistakes}"
            raise NotUnderstood(said, named) from None

    def _request(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """A connection of its own each time: what is between may cut one that is idle. No proxy, no redirect."""
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout_s, context=trusted()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        with contextlib.closing(connection):
            connection.request("POST", self._parts.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)


def check_url(url: str) -> None:
    """Raises InputError."""
    try:
        parts = urllib.parse.urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        raise InputError(f"{url} is no URL of a server, as http://head:8400 is")


def _problem_of(content: bytes) -> tuple[str, str]:
    """`error` and `queue` of `orchestrator.problem.Problem`; both are '' where the content is none."""
    try:
        value = json.loads(content)
        return (str(value["error"]), str(value.get("queue", ""))) if isinstance(value["message"], str) else ("", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""


def _queue_of_message(content: bytes) -> str | None:
    """The queue that a message names, also one of another release; None: this is no message."""
    try:
        value = json.loads(content)
        return str(value.get("queue", "")) if isinstance(value["version"], int) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _detail(content: bytes) -> str:
    """What an answer says is wrong, in one short line."""
    try:
        value = json.loads(content)
        text = str(value.get("message") or value.get("detail") or value) if isinstance(value, dict) else str(value)
    except ValueError:
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300] or "no reason given"
