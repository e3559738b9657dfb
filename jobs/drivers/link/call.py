"""Sends one message of `jobs.drivers.link.messages` to a server. Light to import, for programs that mostly wait."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.parse
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from cluster.errors import InputError, MachinesFailed
from cluster.tls import trusted
from jobs.drivers.link.messages import Message

Reply = TypeVar("Reply", bound=Message)

ANSWER_S: Final = 20.0  # seconds; timeout of one request
_MOST_BYTES: Final = 32 << 20  # largest answer that is read


class NoAnswer(Exception):
    """The server gave no useful answer; the caller may ask again."""


class NotUnderstood(MachinesFailed):
    """The server is of an incompatible release, and may be about to be upgraded. For `queue`, see Refused."""

    def __init__(self, message: str, queue: str = "") -> None:
        super().__init__(message)
        self.queue = queue


class Refused(InputError):
    """The server rejects the message, and would reject it again.

    Attributes:
        answered: HTTP status of the answer.
        error: the server's name of the error; '' if a proxy answered and not the server.
        queue: id of the queue that answered; '' if the answer names none.
    """

    def __init__(self, message: str, answered: int, error: str = "", queue: str = "") -> None:
        super().__init__(message)
        self.answered, self.error, self.queue = answered, error, queue


class Server:
    """A server's address, and the token that identifies the sender."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url, self._token = url, token
        self._parts = urllib.parse.urlsplit(url)

    def post(self, path: str, message: Message, reply: type[Reply], timeout_s: float = ANSWER_S) -> Reply:
        """Send a message and return the reply.

        Raises:
            Refused: a status that would not change if asked again: any 4xx except 408, 422, 425 and 429.
            NotUnderstood: a Fleetune server answers, but the message or the answer belongs to another release.
            NoAnswer: any other problem.
        """
        try:
            status, content = self._request(path, message.model_dump_json().encode(), timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        value = _object(content)
        queue = str(value.get("queue", ""))
        # `error` of an `orchestrator.problem.Problem`; a proxy's answer has none
        called = str(value.get("error", "")) if isinstance(value.get("message"), str) else ""
        if status // 100 != 2:
            said = str(value.get("message") or value.get("detail") or content.decode(errors="replace"))
            detail = " ".join(said.split())[:300] or "no reason given"
            if status == 422 and called:
                raise NotUnderstood(f"the server at {self.url} does not understand this program: {detail}", queue)
            if 400 <= status < 500 and status not in (408, 425, 429):
                raise Refused(detail, status, called, queue if called else "")
            raise NoAnswer(f"status {status}: {detail}")
        try:
            return reply.model_validate_json(content)
        except ValidationError as error:
            if not isinstance(value.get("version"), int):  # every message of every Fleetune release has a version
                raise NoAnswer(f"the program that answers at {self.url} is not a Fleetune server") from None
            mistakes = "; ".join(f"{one['loc']}: {one['msg']}" for one in error.errors(include_input=False)[:3])
            said = f"the answer of the server at {self.url} belongs to another release: {mistakes}"
            raise NotUnderstood(said, queue) from None

    def _request(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Use a new connection each time, because a proxy may cut an idle one. No proxy settings, no redirects."""
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


def _object(content: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer; {} for any other content."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
