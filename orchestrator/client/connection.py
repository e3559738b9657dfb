"""A connection to one server: requests are repeated if that is safe, and errors become readable exceptions."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

import cluster.errors
import orchestrator.queue.errors
from cluster.addresses import is_loopback, is_server_url
from cluster.errors import FleetuneError, InputError, Mistake
from cluster.settings import fleetune_home
from cluster.tls import trusted
from orchestrator.problem import Problem
from orchestrator.queue.errors import UnknownJob

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
# Seconds from the first failure of a request in which it is sent again, if the server has answered before or asks to
# try again. A request that is sent within this time still has ANSWER_S for its answer.
PATIENCE_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0
_PASSWORD: Final = re.compile(r"^((?:[a-z]+://)?[^/@:]*):.*@", re.IGNORECASE)

# These errors occur before anything reaches the server, so that every request may be repeated.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

# Statuses of a proxy whose server does not answer. They may follow a request that the server has carried out.
_BAD_GATEWAY: Final = (502, 504)
_UNAVAILABLE: Final = 503
_TOO_MANY: Final = 429  # the same request may be answered later

_TOO_OFTEN: Final = "TooManyFailures"  # the error of an address that failed too often; repeating does not help

ToldT = TypeVar("ToldT", bound=BaseModel)
Params = Mapping[str, "str | int | float | list[str] | None"]


class NoServer(FleetuneError):
    """No server answers at the URL, or it does not answer any more."""


class NotAServer(FleetuneError):
    """The program that answers at the URL is not a Fleetune server."""


class TokenRefused(InputError):
    """The server does not know the token, or its role does not permit the request."""


class ServerError(FleetuneError):
    """The server has failed or is too busy, or its answer is not known to this release."""


class Connection:
    """A connection to a server. Thread-safe.

    Args:
        token: sent with each request; None: none.
        token_from: where the token comes from, for messages.
        note: what is known about a server that does not answer, for messages.
        find: returns the current URL of the server after it has stopped answering; another server may have started. If
            given, the server has answered before the connection was made.
        patience_s: seconds from the first failure of a request in which it is repeated if that is safe. If the server
            has never answered, and `find` is not given, the first failure is final: the server is probably not running.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        token_from: str = "that was given",
        note: str = "",
        patience_s: float = PATIENCE_S,
        answer_s: float = ANSWER_S,
        find: Callable[[], str] | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = checked_url(url)
        self._token, self._token_from, self._note = token, token_from, note
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self._find = find
        self._has_answered = find is not None
        headers = {"User-Agent": f"fleetune/{version('fleetune')}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {_checked_token(token, token_from)}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s)),
            transport=transport,
            # Loopback connections need no proxy, and plain http needs no certificates.
            trust_env=not is_loopback(urlsplit(self.url).hostname),
            verify=trusted() if self.url.startswith("https:") else False,
        )

    @property
    def _shown(self) -> str:
        return _without_password(self.url)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, answer: type[ToldT], params: Params | None = None) -> ToldT:
        return self._ask("GET", path, answer, params=params, again=True)

    def post(self, path: str, answer: type[ToldT], body: BaseModel | None = None, *, again: bool = False) -> ToldT:
        """Send a POST request. `again`: repeating it is safe, because a key identifies it."""
        return self._ask("POST", path, answer, body=body, again=again)

    def put(self, path: str, answer: type[ToldT], body: BaseModel, params: Params | None = None) -> ToldT:
        return self._ask("PUT", path, answer, params=params, body=body, again=True)

    def delete(self, path: str, answer: type[ToldT]) -> ToldT:
        return self._ask("DELETE", path, answer, again=False)

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[ToldT],
        *,
        params: Params | None = None,
        body: BaseModel | None = None,
        again: bool,
    ) -> ToldT:
        """Send a request and parse the answer.

        Raises the server's error, NoServer, NotAServer, TokenRefused or ServerError.
        """
        content = None if body is None else body.model_dump_json().encode()
        request = partial(
            self._http.build_request,
            method,
            path,
            params={name: value for name, value in (params or {}).items() if value is not None},
            content=content,
            headers={} if content is None else {"Content-Type": "application/json"},
        )
        return self._read(self._send(request, again), answer)

    def _send(self, request: Callable[[], httpx.Request], again: bool) -> httpx.Response:
        """Send a request, again after failures that may pass. `again`: it may be sent again after it has arrived."""
        until_s, pause_s = math.inf, FIRST_PAUSE_S
        while True:
            response: httpx.Response | None = None
            failed: httpx.TransportError | None = None
            try:
                response = self._http.send(request())
                waits = self._asks_to_wait(response, again)
            except httpx.TransportError as error:
                failed, waits = error, self._has_answered and (again or isinstance(error, _NOT_SENT))
            except httpx.InvalidURL as error:
                raise InputError(f"{self._shown} is no URL: {error}") from error
            now_s = self._clock()
            until_s = min(until_s, now_s + self._patience_s)  # the time of the first failure is no part of the patience
            if not waits or now_s >= until_s:
                if response is None:
                    assert failed is not None
                    raise self._no_server(failed) from failed
                return response
            if self._find is not None and isinstance(failed, _NOT_SENT):
                self.url = self._find()
                self._http.base_url = httpx.URL(self.url)
            self._sleep(min(pause_s * random.uniform(0.8, 1.2), max(until_s - self._clock(), 0.0)))
            pause_s = min(pause_s * 2.0, LONGEST_PAUSE_S)

    def _asks_to_wait(self, response: httpx.Response, again: bool) -> bool:
        """Whether a request should be sent again because of this answer."""
        if response.status_code in _BAD_GATEWAY:
            return self._has_answered and again and _problem_in(response) is None
        if response.status_code not in (_TOO_MANY, _UNAVAILABLE):
            return False
        problem = _problem_in(response)
        self._has_answered = self._has_answered or problem is not None
        if response.status_code == _UNAVAILABLE and not again:
            # Fleetune answers so if nothing was written. A proxy may have lost the answer to a request that was.
            return problem is not None and problem.error in _KINDS
        return problem is None or problem.error != _TOO_OFTEN

    def _read(self, response: httpx.Response, answer: type[ToldT]) -> ToldT:
        kind: type[ToldT] | type[Problem] = answer if response.is_success else Problem
        try:
            told = kind.model_validate_json(response.content)
        except ValidationError as error:
            raise self._strange(response, error) from error
        self._has_answered = True
        if isinstance(told, Problem):
            raise self._error_of(response.status_code, told)
        return told

    def _error_of(self, status: int, problem: Problem) -> FleetuneError:
        if status == 401 or problem.error == _TOO_OFTEN:
            return TokenRefused(f"{problem.message} ({self._format_token()})")
        refused = 400 <= status < 500 and status != _TOO_MANY
        kind = _KINDS.get(problem.error) or (InputError if refused else ServerError)
        if status == 403:
            kind = TokenRefused
        if issubclass(kind, InputError) and problem.items:
            return kind.of(Mistake(one.message, one.field, spec=one.spec) for one in problem.items)
        error = kind(problem.message)
        if isinstance(error, UnknownJob):
            error.meant = problem.meant
        return error

    def _format_token(self) -> str:
        if self._token is None:
            return (
                f"set FLEETUNE_TOKEN, or write the token to {fleetune_home() / 'token'}; an admin creates one with "
                "fleetune tokens add NAME --role member --tenant TENANT"
            )
        return f"the token sent to {self._shown} was {self._token[:7]}... {self._token_from}: put the new one there"

    def _no_server(self, error: httpx.TransportError) -> NoServer:
        if self._has_answered:
            return self._gone(_cause(error))
        url = self._shown
        if isinstance(error, httpx.TimeoutException):
            what = f"no server answers at {url} in time ({_cause(error)})"
        elif isinstance(error, httpx.ConnectError):
            what = f"no server answers at {url} ({_cause(error)})"
        else:
            what = f"the program that answers at {url} is no server of Fleetune ({_cause(error)})"
        if url.startswith("https:") and "WRONG_VERSION_NUMBER" in str(error):
            what += f"; it seems to speak plain http: try http{url.removeprefix('https')}"
        note = f"; {self._note}" if self._note else ""
        return NoServer(f"{what}{note}: start one with `fleetune serve`, or say which with --url or FLEETUNE_URL")

    def _gone(self, cause: str) -> NoServer:
        return NoServer(
            f"the server at {self._shown} does not answer any more ({cause}). The request may have been done or not: "
            "start the server again (`fleetune serve`), and see `fleetune queue`. Running jobs go on without it"
        )

    def _strange(self, response: httpx.Response, error: ValidationError) -> FleetuneError:
        if self._has_answered and response.status_code in (*_BAD_GATEWAY, _UNAVAILABLE):
            return self._gone(f"a proxy said {response.status_code}")
        kind = response.headers.get("content-type", "no type").partition(";")[0]
        if kind == "application/json" and self._has_answered:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            return ServerError(
                f"this release (fleetune {version('fleetune')}) does not understand the answer of the server "
                f"at {self._shown} ({response.request.url.path}: {where}: {first['msg']}): upgrade the older one of "
                "the two"
            )
        start = " ".join(response.text[:200].split())[:60]
        moved = f", to {response.headers['location']}" if response.is_redirect else ""
        return NotAServer(
            f"the program that answers at {self._shown} is no server of Fleetune: it said {response.status_code} "
            f"({kind}){moved}"
            f"{f': {start}' if start else ''}. Say which server with --url or FLEETUNE_URL"
        )


def _problem_in(response: httpx.Response) -> Problem | None:
    """Return the error in a server's answer; None: the answer is a proxy's, and not the server's."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def checked_url(url: str) -> str:
    """Return the URL without a trailing slash. Raises InputError."""
    if not is_server_url(url):
        hint = f"; did you mean http://{_without_password(url)}?" if "://" not in url and url else ""
        raise InputError(f"{_without_password(url)!r} is no URL of a server, as http://127.0.0.1:8400 is{hint}")
    return url.rstrip("/")


def _without_password(url: str) -> str:
    return _PASSWORD.sub(r"\1:***@", url)


def _checked_token(token: str, token_from: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"the token {token_from} is not valid: it is empty, or has characters that no token has")
    return token


def _cause(error: httpx.TransportError) -> str:
    """Describe a transport error in a few words."""
    text = str(error)
    if "refused" in text:
        return "connection refused"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("verify failed: ")[2].partition(" (_ssl")[0] or "it is not trusted"
        return f"its certificate: {reason}. Set FLEETUNE_CA_FILE to the certificate of its CA"
    if "Name or service" in text or "name resolution" in text or "nodename" in text:
        return "there is no host of that name"
    if isinstance(error, httpx.ConnectTimeout):
        return "timed out"
    if isinstance(error, httpx.TimeoutException):
        return "it took too long to answer"
    return text or type(error).__name__


_KINDS: Mapping[str, type[FleetuneError]] = {
    name: one
    for name, one in (vars(cluster.errors) | vars(orchestrator.queue.errors)).items()
    if isinstance(one, type) and issubclass(one, FleetuneError)
}
