"""What goes wrong between a client and a server, and what is said of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import httpx
import pytest

from cluster.errors import CapacityError, FleetuneError, InputError, Mistake
from orchestrator.api import JobPage, Me, Priority
from orchestrator.client.connection import Connection, NoServer, NotAServer, ServerError, TokenRefused, checked_url
from orchestrator.client.discovery import connected, token_here
from orchestrator.problem import Problem
from orchestrator.queue.errors import JobEnded, UnknownJob

ME = {"name": "anna", "role": "member", "tenant": "vision", "tokens_needed": True}
Answer = Callable[[httpx.Request], httpx.Response]


class Talk:
    """A connection to odd servers, and what has passed. `each_s`: how long each request but the first takes."""

    def __init__(
        self,
        *answers: httpx.Response | Exception,
        token: str | None = None,
        patience_s: float = 5.0,
        each_s: float = 0.0,
        find: Callable[[], str] | None = None,
    ) -> None:
        self.requests: list[httpx.Request] = []
        self.slept_s, self._each_s = 0.0, each_s
        self._answers = chain(answers, repeat(answers[-1]))
        self.connection = Connection(
            "http://127.0.0.1:1",
            token,
            token_from="of FLEETUNE_TOKEN",
            patience_s=patience_s,
            transport=httpx.MockTransport(self._answer),
            find=find,
            clock=lambda: self.slept_s + self._each_s * (len(self.requests) - 1),
            sleep=self._sleep,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def me(self) -> Me:
        return self.connection.get("/v1/me", Me)


def problem(status: int, error: str, message: str = "because") -> httpx.Response:
    return httpx.Response(status, json=Problem(error=error, message=message).model_dump())


def ok() -> httpx.Response:
    return httpx.Response(200, json=ME)


REFUSED = httpx.ConnectError("[Errno 111] Connection refused")
CUT = httpx.RemoteProtocolError("Server disconnected without sending a response.")


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (404, "UnknownJob", UnknownJob),
        (409, "JobEnded", JobEnded),
        (400, "CapacityError", CapacityError),
        (422, "WrongShape", InputError),
        (500, "ServerError", ServerError),
        (429, "TooMany", ServerError),  # no InputError: the same request may succeed later
        (500, "SomethingOfANewerRelease", FleetuneError),
    ],
)
def test_a_problem_becomes_the_exception_of_its_name(status: int, error: str, expected: type[FleetuneError]) -> None:
    with pytest.raises(expected, match=r"^because$"):
        Talk(problem(status, error)).me()


def test_a_refused_token_is_named_but_not_shown() -> None:
    with pytest.raises(TokenRefused, match="because") as caught:
        Talk(problem(401, "NoToken"), token="ft_" + "x" * 43).me()
    assert (
        "ft_xxxx... of FLEETUNE_TOKEN: put the new one there" in str(caught.value)
        and "http://127.0.0.1:1" in str(caught.value)
        and "x" * 9 not in str(caught.value)
    )


def test_a_token_s_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETUNE_HOME", str(tmp_path))
    monkeypatch.setenv("FLEETUNE_TOKEN", "")
    assert token_here()[0] is None and token_here("ft_mine") == ("ft_mine", "that was given")
    (tmp_path / "token").write_text("ft_file\n")
    (tmp_path / "token").chmod(0o600)
    assert token_here() == ("ft_file", f"of the file {tmp_path}/token")
    monkeypatch.setenv("FLEETUNE_TOKEN", "ft_variable")
    assert token_here() == ("ft_variable", "of FLEETUNE_TOKEN")
    (tmp_path / "token").chmod(0o644)
    assert token_here() == ("ft_variable", "of FLEETUNE_TOKEN")


def test_https_to_a_server_that_speaks_http_is_answered_with_the_other_url() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number")

    connection = Connection("https://127.0.0.1:1", transport=httpx.MockTransport(answer))
    with pytest.raises(NoServer, match=r"it seems to speak plain http: try http://127\.0\.0\.1:1"):
        connection.get("/v1/me", Me)


def test_without_a_token_it_is_said_how_to_get_one() -> None:
    with pytest.raises(TokenRefused, match="fleetune tokens add NAME"):
        Talk(problem(401, "NoToken")).me()


def test_what_a_token_may_not_do_is_said_by_the_server() -> None:
    with pytest.raises(TokenRefused, match=r"^because$"):
        Talk(problem(403, "Forbidden"), token="ft_" + "x" * 43).me()


def test_a_server_that_was_never_there_is_not_waited_for() -> None:
    talk = Talk(REFUSED)
    with pytest.raises(NoServer, match=r"no server answers at http://127.0.0.1:1 \(connection refused\): start"):
        talk.me()
    assert (len(talk.requests), talk.slept_s) == (1, 0.0)


def test_a_server_that_starts_again_is_waited_for() -> None:
    talk = Talk(ok(), REFUSED, CUT, problem(503, "NotLeader"), problem(429, "TooMany"), ok())
    talk.me()
    assert talk.me().name == "anna" and len(talk.requests) == 6 and talk.slept_s > 0.2


def test_waiting_has_an_end() -> None:
    talk = Talk(ok(), REFUSED)
    talk.me()
    with pytest.raises(NoServer, match="does not answer any more"):
        talk.me()
    assert talk.slept_s == pytest.approx(5.0)


def test_the_time_of_a_request_without_an_answer_counts_for_no_patience() -> None:
    late = httpx.ReadTimeout("timed out")
    talk = Talk(ok(), late, ok(), each_s=60.0)
    talk.me()
    assert talk.me().name == "anna" and len(talk.requests) == 3
    talk = Talk(ok(), late, each_s=60.0)
    talk.me()
    with pytest.raises(NoServer, match=r"does not answer any more \(it took too long"):
        talk.me()
    assert len(talk.requests) == 3, "the second failure is later than the patience after the first one"


def test_the_error_of_a_proxy_is_waited_out_after_the_server_has_answered() -> None:
    def proxy(status: int) -> httpx.Response:
        return httpx.Response(status, html="<html>nginx</html>")

    talk = Talk(ok(), proxy(502), proxy(504), proxy(503), ok())
    talk.me()
    assert talk.me().name == "anna" and len(talk.requests) == 5
    talk = Talk(ok(), proxy(502))
    talk.me()
    with pytest.raises(NoServer, match=r"does not answer any more \(a proxy said 502\)"):
        talk.me()
    assert talk.slept_s == pytest.approx(5.0)
    talk = Talk(ok(), proxy(504))
    talk.me()
    with pytest.raises(NoServer, match="may have been done or not"):
        talk.connection.post("/v1/jobs/a/cancel", Me)
    assert len(talk.requests) == 2
    talk = Talk(ok(), proxy(503), ok())
    talk.me()
    with pytest.raises(NoServer, match="may have been done or not"):
        talk.connection.post("/v1/tokens", Me)
    assert len(talk.requests) == 2
    talk = Talk(ok(), problem(503, "Service Unavailable"), ok())  # a proxy whose errors look like ours
    talk.me()
    with pytest.raises(ServerError):
        talk.connection.post("/v1/tokens", Me)
    assert len(talk.requests) == 2
    talk = Talk(problem(503, "StoreBroken"), problem(429, "TooMany"), ok())  # nothing was written
    assert talk.connection.post("/v1/tokens", Me).name == "anna"
    with pytest.raises(NotAServer, match="it said 502"):
        Talk(proxy(502)).me()


def test_a_server_that_was_found_and_ends_before_the_first_request_is_found_again() -> None:
    talk = Talk(REFUSED, ok(), find=lambda: "http://127.0.0.1:2")
    assert talk.me().name == "anna"
    assert [request.url.port for request in talk.requests] == [1, 2]


def test_not_yet_ready_is_waited_for_and_then_said() -> None:
    talk = Talk(problem(503, "NotLeader", "nobody leads"))
    with pytest.raises(FleetuneError, match="nobody leads"):
        talk.me()
    assert len(talk.requests) > 3


def test_what_may_have_been_done_is_sent_again_only_with_a_key() -> None:
    talk = Talk(ok(), httpx.ReadTimeout("timed out"), httpx.Response(201, json={"jobs": [], "next": None}))
    talk.me()
    with pytest.raises(NoServer, match="may have been done or not"):
        talk.connection.post("/v1/jobs/a/cancel", Me)
    talk = Talk(ok(), httpx.ReadTimeout("timed out"), httpx.Response(201, json={"jobs": [], "next": None}))
    talk.me()
    assert talk.connection.post("/v1/jobs", JobPage, Priority(priority=1), again=True).jobs == ()
    assert talk.requests[1].content == talk.requests[2].content


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<html><h1>It works!</h1></html>"),
        httpx.Response(404, html="<html>nginx</html>"),
        httpx.Response(200, json={"version": "7.10", "tagline": "You know, for search"}),
        httpx.Response(200, json=[1, 2]),
        httpx.Response(200, content=b"\x00\xff\xfe"),
        httpx.Response(302, headers={"location": "https://login.example.org/"}),
        httpx.Response(204),
    ],
)
def test_something_else_that_answers_is_told_from_a_server(answer: httpx.Response) -> None:
    with pytest.raises(NotAServer, match=f"no server of Fleetune: it said {answer.status_code} ") as caught:
        Talk(answer).me()
    assert "--url" in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_is_known_is_passed_over_and_less_is_said_by_name() -> None:
    talk = Talk(httpx.Response(200, json=ME | {"mood": "fine"}), httpx.Response(200, json={"name": "anna"}))
    assert talk.me().name == "anna"
    with pytest.raises(ServerError, match=r"/v1/me: role: .*upgrade the older one"):
        talk.me()


@pytest.mark.parametrize(
    "url",
    ["localhost:8400", "", "ftp://host", "http://", "http://h:99999", "http://h?x=1", "http://h:x", "http://[::1:8400"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no URL of a server"):
        checked_url(url)
    assert checked_url("https://queue.example.org/fleetune/") == "https://queue.example.org/fleetune"


@pytest.mark.parametrize("token", ["", "ft x", "ft_\n", "ft_é"])
def test_a_token_that_cannot_be_one_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="the token of FLEETUNE_TOKEN is not valid"):
        Talk(ok(), token=token)


def test_a_server_that_was_killed_is_named_with_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("FLEETUNE_URL", raising=False)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9413", "pid": gone.pid}))
    with connected(None, 0.0) as connection, pytest.raises(NoServer, match=rf"9413 \(process {gone.pid}\) has ended"):
        connection.get("/v1/me", Me)


def test_mistakes_come_with_their_fields_and_those_of_an_older_server_as_one_message() -> None:
    told = {
        "error": "CapacityError",
        "message": "spec 2: resources: too many\nand 1 more",
        "items": [{"spec": 2, "field": "resources", "message": "too many", "of_a_newer": 1}, {"message": "and 1 more"}],
    }
    for known, mistakes in (
        (told, (Mistake("too many", "resources", spec=2), Mistake("and 1 more"))),
        ({name: told[name] for name in ("error", "message")}, (Mistake(str(told["message"])),)),
    ):
        with pytest.raises(CapacityError) as caught:
            Talk(httpx.Response(400, json=known)).me()
        assert str(caught.value) == told["message"] and caught.value.mistakes == mistakes
    with pytest.raises(TokenRefused) as refused:
        Talk(httpx.Response(403, json=told | {"error": "Forbidden"})).me()
    assert refused.value.mistakes[0].spec == 2
    with pytest.raises(UnknownJob) as unknown:
        Talk(httpx.Response(404, json={"error": "UnknownJob", "message": "no", "meant": ["a-1"]})).me()
    assert unknown.value.meant == ("a-1",)
