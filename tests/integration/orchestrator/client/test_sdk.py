"""The SDK against a real server, and against one that a script brings along."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.errors import SpecError
from jobs.spec.command import CommandSpec
from orchestrator import Client, JobCancelled, JobFailed
from orchestrator.client.connection import NoServer
from orchestrator.client.readers import QueueReader
from orchestrator.pages.queue import in_order
from orchestrator.queue.errors import JobEnded, KeyReused, ParentFailed, UnknownJob, UnknownTenant
from orchestrator.queue.states import State
from tests.support.processes import closed_port, wait_for
from tests.support.server import Server, server


def does(script: str, name: str = "does", workers: int = 1) -> CommandSpec:
    return CommandSpec.model_validate(
        {"kind": "command", "name": name, "command": ["sh", "-c", script], "resources": {"num_workers": workers}}
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server"), local=True) as found:
        yield found


@pytest.fixture
def client(here: Server) -> Iterator[Client]:
    with Client(here.url) as found:
        yield found
        for left in found.jobs(states=("queued", "starting", "running", "stopping")):
            left.cancel()


def test_a_result_has_what_a_future_s_has(client: Client) -> None:
    run = client.submit(does("echo hi"))
    assert repr(run).startswith("JobHandle('does-") and not run.cancelled()
    result = run.result(timeout_s=300.0)
    assert (result.state, result.job_id, result.name) == (State.SUCCEEDED, run.id, "does")
    assert result.paths is None and result.metrics == {}
    assert run.done() and not run.running() and run.exception() is None and run.cancel() is False
    assert [str(line) for line in run.logs()] == ["output | hi"]
    assert run.expected_start is None and run.paths is None and len(run.metrics) == 0


def test_a_failure_carries_the_end_of_its_log(client: Client) -> None:
    run = client.submit(does("echo no such luck >&2; exit 3"))
    with pytest.raises(JobFailed, match="no such luck") as caught:
        run.result(timeout_s=300.0)
    assert caught.value.job_id == run.id and f"fleetune logs {run.id}" in str(caught.value)
    assert isinstance(run.exception(), JobFailed)
    run.retry()
    assert run.exception(timeout_s=300.0) is not None and run.view.attempt >= 2


def test_waiting_has_an_end_and_the_job_goes_on_until_it_is_cancelled(client: Client) -> None:
    run = client.submit(does("sleep 300"))
    with pytest.raises(TimeoutError, match=run.id):
        run.result(timeout_s=0.3)
    with pytest.raises(TimeoutError, match="1 jobs have not ended"):
        next(client.as_completed([run], timeout_s=0.3))
    wait_for(run.running, "it runs")
    assert run.cancel() is True
    with pytest.raises(JobCancelled, match=f"fleetune retry {run.id}"):
        run.result(timeout_s=300.0)
    assert run.cancelled() and run.cancel() is True


def waits_for(file: Path, name: str = "does") -> CommandSpec:
    return does(f"until [ -e {file} ]; do sleep 0.1; done", name)


def test_jobs_come_as_they_end_and_each_once(client: Client, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    slow, quick = client.submit(waits_for(may_end, "slow")), client.submit(does("true", "quick"))
    ended = client.as_completed([slow, quick, slow], timeout_s=300.0)
    assert next(ended).name == "quick"
    may_end.touch()
    assert [run.name for run in ended] == ["slow"]
    assert [run.name for run in client.as_completed([slow])] == ["slow"]
    assert client.wait([slow, quick]) == [slow, quick]


def order(here: Server, wanted: str, *nodes: str) -> None:
    with here.client() as http:
        for node in nodes:
            http.put(f"/v1/nodes/{node}", json={"order": wanted, "reason": "a test"}).raise_for_status()


@pytest.mark.slow
def test_many_are_queued_in_their_order_in_few_requests(here: Server, client: Client) -> None:
    nodes = [node.node_id for node in client.nodes()]
    order(here, "cordon", *nodes)  # else some start between two requests
    here.looks_anew()
    runs = client.submit_many(does(f"echo {number}", f"many-{number}") for number in range(1100))
    assert [run.name for run in runs] == [f"many-{number}" for number in range(1100)]
    assert len({run.id for run in runs}) == 1100
    listed = [run.id for run in client.jobs(name="many-")]
    assert listed == [run.id for run in reversed(runs)]
    oldest = in_order(QueueReader(client._connection, None, looked_at=1050).jobs([State.QUEUED], 0))
    assert len(oldest) == 1050 and oldest[0].number == min(run.view.number for run in client.jobs(states=["queued"]))
    for run in runs[2:]:
        run.cancel()
    order(here, "use", *nodes)
    assert len(client.wait(runs, timeout_s=300.0)) == 1100


def test_logs_are_followed_to_the_end(client: Client) -> None:
    run = client.submit(does("for i in 1 2 3; do echo $RANK-$i; sleep 0.3; done", workers=2))
    lines = [line.text.rpartition(" ")[2] for line in run.logs(follow=True)]
    assert run.done() and sorted(lines) == sorted(f"{rank}-{i}" for rank in range(2) for i in (1, 2, 3))
    assert [line.text for line in run.logs(source="output")] == [line.text for line in run.logs()]


def test_the_queue_is_looked_at(client: Client) -> None:
    parent = client.submit(does("sleep 300", "parent"))
    wait_for(lambda: client.job(parent.id).state is not State.QUEUED, "it is started")
    child = client.submit(does("true", "child"), after=[parent], priority=3)
    assert child.view.after == (parent.id,) and child.view.priority == 3
    assert client.job(child.id).state is State.QUEUED and parent.id in client.why(child).text
    start = child.expected_start
    assert start is None or start.tzinfo is datetime.UTC
    assert {run.id for run in client.jobs(states=["queued"])} == {child.id}
    assert client.nodes() and "default" in {tenant.name for tenant in client.tenants()}
    assert isinstance(client.usage(), tuple) and client.server().engine == "local"
    child.pause()
    child.resume()


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"tenant": "gone"}, UnknownTenant),
        ({"after": ["gone-123456"]}, UnknownJob),
        ({"priority": 5000}, SpecError),
    ],
)
def test_what_cannot_be_is_refused(client: Client, asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        client.submit(does("true"), **asked)


def test_what_is_wrong_is_said_of_the_file_or_the_name_of_a_spec(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lost.yaml"
    path.write_text("kind: command\nname: lost\ncommand: [echo]\nqueue: {after: [gone-123456]}\n")
    with pytest.raises(UnknownJob) as caught:
        client.submit_many([does("true"), path, does("true", "third").model_copy(update={"queue": {"after": ["b-1"]}})])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:4: queue.after: ") and lines[1].startswith("spec 3 (third): queue.after: ")
    assert len(lines) == 2


def test_a_job_whose_parents_have_failed_is_not_retried_before_them(client: Client) -> None:
    first = client.submit(does("sleep 300", "first"))
    second = client.submit(does("true", "second"), after=[first])
    third = client.submit(does("true", "third"), after=[second])
    first.cancel()
    client.wait([first, second, third], timeout_s=300.0)
    with pytest.raises(ParentFailed, match=f"fleetune retry {first.id} {second.id} {third.id}$"):
        third.retry()
    assert third.state is State.FAILED
    for run in (first, second, third):
        run.retry()
    assert third.view.state is State.QUEUED


def test_what_is_not_there_or_too_late_has_its_own_exception(client: Client) -> None:
    with pytest.raises(UnknownJob):
        client.job("gone-123456")
    run = client.submit(does("true"))
    run.result(timeout_s=300.0)
    with pytest.raises(JobEnded):
        run.pause()
    with pytest.raises(SpecError, match=r"gone\.yaml"):
        client.submit("gone.yaml")


def test_a_client_that_times_out_sends_again_and_gets_the_same_job(here: Server) -> None:
    with Client(here.url) as one, Client(here.url) as other:
        first = one.submit(does("true"), key="the-same")
        assert other.submit(does("true"), key="the-same").id == first.id
        many = [run.id for run in one.submit_many([does("true"), does("true")], key="the-same")]
        assert [run.id for run in other.submit_many([does("true"), does("true")], key="the-same")] == many
        with pytest.raises(KeyReused):
            one.submit(does("false"), key="the-same")
        assert one.submit(does("true")).id != one.submit(does("true")).id


class Lossy(ThreadingHTTPServer):
    """Stands before a server, passes requests on, and hangs up instead of giving the first answers to submissions."""

    def __init__(self, url: str, lose: int) -> None:
        self.server_url, self.lose = url, lose
        super().__init__(("127.0.0.1", 0), Passing)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Passing(BaseHTTPRequestHandler):
    server: Lossy

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = {"content-type": "application/json"}
        with httpx.Client(trust_env=False, timeout=60.0) as client:
            answer = client.request(self.command, self.server.server_url + self.path, content=content, headers=headers)
        if self.command == "POST" and self.server.lose:
            self.server.lose -= 1
            return
        self.send_response(answer.status_code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, format: str, *values: object) -> None:
        pass


def test_answers_that_are_lost_make_no_second_job(here: Server) -> None:
    with Lossy(here.url, lose=2) as lossy:
        thread = threading.Thread(target=lossy.serve_forever)
        thread.start()
        with Client(lossy.url) as client:
            client.server()
            runs = client.submit_many([does("true", "lossy"), does("true", "lossy")])
            assert [run.id for run in client.jobs(name="lossy")] == [run.id for run in reversed(runs)]
        assert lossy.lose == 0
        lossy.shutdown()
        thread.join()


def test_a_handle_serves_many_threads(client: Client) -> None:
    run = client.submit(does("sleep 1"))
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(run.result(300.0).state)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [State.SUCCEEDED] * 8


@pytest.mark.slow
def test_a_server_that_starts_again_is_waited_for(tmp_path: Path) -> None:
    with server(tmp_path, local=True) as found, Client(found.url) as client:
        may_end = tmp_path / "may-end"
        run = client.submit(waits_for(may_end))
        wait_for(run.running, "it runs")
        found.kill()
        may_end.touch()
        again = threading.Thread(target=found.start)
        again.start()
        assert run.result(timeout_s=300.0).state is State.SUCCEEDED
        assert run.view.attempt == 1
        again.join()


def test_no_server_is_said_at_once() -> None:
    with (
        closed_port() as port,
        Client(f"http://127.0.0.1:{port}") as client,
        pytest.raises(NoServer, match="fleetune serve"),
    ):
        client.submit(does("true"))
