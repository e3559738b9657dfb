"""What `fleetune gc` keeps because the queue needs it, and what it does without an answer of the queue."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from jobs.run.checkpoints import committed_steps
from jobs.run.find import run_names
from jobs.storage import files as storage
from orchestrator.queue.states import State
from tests.integration.orchestrator.gc.test_storage import fleetune_gc, make_run
from tests.support.jobviews import job as job_view
from tests.support.processes import free_port

pytestmark = pytest.mark.usefixtures("own_protocols")


class _Queue(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        found = self.answers.get(self.path.partition("?")[0])
        self.send_response(200 if found is not None else 404)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(found if found is not None else {"error": "X", "message": "no such job"}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def queue(**answers: Any) -> Iterator[str]:
    handler = type("Answering", (_Queue,), {"answers": {"/v1/" + name: told for name, told in answers.items()}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ME = {"name": "a", "role": "admin", "tenant": None, "tokens_needed": True}


def job(job_id: str = "j-1", state: State = State.QUEUED, **facts: Any) -> dict[str, Any]:
    return job_view(job_id, state, **facts).model_dump(mode="json")


def test_what_jobs_of_the_queue_need_stays(root: str) -> None:
    owned, parent, before, other = (make_run(root, name, 40) for name in ("owned", "parent", "before", "other"))
    jobs = {"jobs": [job(run=f"/elsewhere/{owned.name}"), job(job_id="j-2")], "next": None}
    answers = {
        "jobs/j-1/spec": {"model": {"path": storage.join(parent.model)}},
        "jobs/j-2/spec": {"model": {"path": "run:j-0"}},
        "jobs/j-0": job(job_id="j-0", state=State.SUCCEEDED, run=before.root),
    }
    with queue(me=ME, jobs=jobs, **answers) as url:
        done = fleetune_gc(root, "--older-than", "30d", FLEETUNE_URL=url)
    assert done.exit_code == 0 and run_names(root) == sorted([owned.name, parent.name, before.name]), done.output
    assert "job j-1 has not ended" in done.output and "job j-2 starts from it" in done.output
    assert committed_steps(owned) == [10, 20] and committed_steps(parent) == [] == committed_steps(before)
    assert not storage.exists(other.root)


def test_runs_that_parents_of_jobs_have_left_stay(root: str) -> None:
    read, started, other = (make_run(root, name, 40) for name in ("read", "started", "other"))
    jobs = {"jobs": [job(kind="command", after=("p-1",)), job(job_id="j-2", after=("p-1", "p-2"))], "next": None}
    answers = {
        "jobs/j-2/spec": {"model": {"path": "/m"}},
        "jobs/p-1": job(job_id="p-1", state=State.SUCCEEDED, run=read.root),
        "jobs/p-2": job(job_id="p-2", state=State.SUCCEEDED, run=started.root),
    }
    with queue(me=ME, jobs=jobs, **answers) as url:
        done = fleetune_gc(root, "--older-than", "30d", FLEETUNE_URL=url)
    assert done.exit_code == 0 and run_names(root) == sorted([read.name, started.name]), done.output
    assert "job j-1 comes after it" in done.output and "job j-2 comes after it" in done.output
    assert committed_steps(read) == [10, 20] and committed_steps(started) == []
    assert not storage.exists(other.root)


def test_a_server_at_the_usual_address_is_asked_although_nothing_names_it(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned, other = make_run(root, "owned", 40), make_run(root, "other", 40)
    with queue(me=ME, jobs={"jobs": [job(kind="command", run=owned.root)], "next": None}) as url:
        monkeypatch.setattr("orchestrator.gc.needed.USUAL_URL", url)
        done = fleetune_gc(root, "--older-than", "30d")
    assert done.exit_code == 0 and run_names(root) == [owned.name], done.output
    assert "No server is known" not in done.stderr and not storage.exists(other.root)
    with queue() as url:  # it does not tell its jobs
        monkeypatch.setattr("orchestrator.gc.needed.USUAL_URL", url)
        done = fleetune_gc(root, "--older-than", "30d")
    assert done.exit_code == 1 and "--no-server" in done.output and run_names(root) == [owned.name]


def test_where_no_server_is_known_that_is_said_and_nobody_is_asked(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(root, "a", 40)
    monkeypatch.setattr("orchestrator.gc.needed.USUAL_URL", f"http://127.0.0.1:{free_port()}")
    assert "No server is known" in fleetune_gc(root, "--older-than", "30d", "--dry-run").stderr
    assert fleetune_gc(root, "--older-than", "30d", "--dry-run", "--no-server").stderr == ""
    done = fleetune_gc(root, "--older-than", "30d")
    assert done.exit_code == 0 and "set FLEETUNE_URL to its server" in done.stderr and run_names(root) == []


def test_without_an_answer_of_the_queue_nothing_goes_unless_that_is_said(root: str, tmp_path: pathlib.Path) -> None:
    make_run(root, "a", 40)
    nobody = f"http://127.0.0.1:{free_port()}"
    home = tmp_path / "home"
    home.mkdir()
    (home / "server.json").write_text(json.dumps({"url": nobody, "pid": 2**30}))
    for env in ({"FLEETUNE_URL": nobody}, {"FLEETUNE_HOME": str(home)}):
        for more in ((), ("--dry-run",)):
            done = fleetune_gc(root, "--older-than", "30d", *more, **env)
            assert done.exit_code == 1 and "--no-server" in done.output and len(run_names(root)) == 1
    assert fleetune_gc(root, FLEETUNE_URL=nobody).exit_code == 0  # nothing is removed: nobody needs to be asked
    assert fleetune_gc(root, "--older-than", "30d", "--no-server", FLEETUNE_URL=nobody).exit_code == 0
    assert run_names(root) == []


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"me": {**ME, "role": "member", "tenant": "t"}, "jobs": {"jobs": [], "next": None}},
        {"me": ME},
        {"me": ME, "jobs": {"jobs": [job()], "next": None}},  # but no spec
        {"me": ["strange"]},
        {"me": ME, "jobs": {"jobs": [job()], "next": None}, "jobs/j-1/spec": {"model": {"path": "run:gone-1"}}},
    ],
)
def test_a_server_that_does_not_tell_everything_is_as_none(root: str, answers: dict[str, Any]) -> None:
    make_run(root, "a", 40)
    with queue(**answers) as url:
        done = fleetune_gc(root, "--older-than", "30d", FLEETUNE_URL=url)
    assert done.exit_code == 1 and "--no-server" in done.output and len(run_names(root)) == 1
