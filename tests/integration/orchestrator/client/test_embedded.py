"""A server that scripts bring along: one for all of them, and whose jobs end with whom."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.client.discovery import local_server
from orchestrator.client.embedded_server import ClientLock
from orchestrator.queue.states import ENDED
from orchestrator.store import open_store
from tests.support.gangs import ROOT
from tests.support.processes import process_lives, wait_for

SUBMITS = """
import sys, time
from orchestrator import Client, load_job_spec
client = Client(detach={detach})
run = client.submit("{spec}")
print(run.id, client.url, flush=True)
{then}
"""
Script = subprocess.Popen[str]
SLEEPS = 'kind: command\nname: sleeps\ncommand: [sleep, "{seconds}"]\n'
WAITS = 'kind: command\nname: waits\ncommand: [sh, -c, "until [ -e {file} ]; do sleep 0.1; done"]\n'


class Home:
    """A FLEETUNE_HOME of its own, and scripts that use it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.folder = folder / "home", folder
        self.scripts: list[Script] = []

    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FLEETUNE_")}
        return own | {"FLEETUNE_HOME": str(self.path), "PYTHONPATH": str(ROOT)}

    def script(
        self, detach: bool = False, then: str = "time.sleep(1000)", seconds: float = 1000, until: Path | None = None
    ) -> subprocess.Popen[str]:
        """`until`: the job ends when this file is there, and not after `seconds`."""
        spec = self.folder / f"sleeps-{seconds}.yaml"
        spec.write_text(SLEEPS.format(seconds=seconds) if until is None else WAITS.format(file=until))
        code = SUBMITS.format(detach=detach, spec=spec, then=then)
        found = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.scripts.append(found)
        return found

    def fleetune(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, job: str) -> str:
        """From the store: cheaper than a start of `fleetune` at each look, and the server may have ended."""
        with contextlib.closing(open_store(str(self.path / "queue.db"))) as store:
            return store.job(job).state.value

    def end(self) -> None:
        for script in self.scripts:
            script.kill()
            script.communicate()
        if (found := local_server(self.path)) is None:
            return
        if left := self.unfinished():
            try:
                said = self.fleetune("cancel", *left)
            except AssertionError as error:  # the end of its script may have ended it meanwhile
                said = str(error)
            try:
                wait_for(lambda: not self.unfinished(), "nothing is left", 120.0, partial(time.sleep, 0.2))
            except AssertionError as error:
                raise AssertionError(f"{error}\nfleetune cancel: {said}\n{self.story(left)}") from None
        with contextlib.suppress(ProcessLookupError):  # a server ends itself, once no script lives and no job runs
            os.kill(found.pid, signal.SIGTERM)
        wait_for(lambda: not process_lives(found.pid), "the server ends")

    def story(self, jobs: list[str]) -> str:
        """The records and logs of jobs that do not end, and the log of their server."""
        with contextlib.closing(open_store(str(self.path / "queue.db"))) as store:
            known = [f"{store.job(job)}" for job in jobs]
        logs = [self.path / "serve.log", *self.path.rglob("output"), *self.path.rglob("supervisor.log")]
        said = [f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs if log.exists()]
        return "\n".join([*known, *said])

    def unfinished(self) -> list[str]:
        """From the store: the server may end at any time, now that its scripts have."""
        with contextlib.closing(open_store(str(self.path / "queue.db"))) as store:
            return [job.job_id for job in store.jobs() if job.state not in ENDED]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path)
    yield found
    found.end()


def submitted(script: Script) -> tuple[str, str]:
    assert script.stdout is not None and script.stderr is not None
    line = script.stdout.readline().split()
    assert len(line) == 2, script.stderr.read()
    return line[0], line[1]


def test_jobs_end_with_a_script_that_was_killed_and_go_on_where_it_said_so(home: Home) -> None:
    ends, url = submitted(script := home.script())
    stays, same = submitted(other := home.script(detach=True))
    assert url == same
    for job in (ends, stays):
        wait_for(lambda job=job: home.state(job) == "running", "it runs")  # type: ignore[misc]
    for killed in (script, other):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_for(lambda: home.state(ends) == "cancelled", "it ends with its script", 120.0)
    assert "the end of its client" in home.fleetune("events", "--job", ends)
    assert home.state(stays) == "running"


@pytest.mark.slow
@pytest.mark.parametrize("then", ["", "client.close()", "raise SystemExit(3)", "import os; os._exit(0)"])
def test_every_end_of_a_script_ends_its_jobs(home: Home, then: str) -> None:
    """It returns, closes its client, fails, or is gone without a word."""
    job, _ = submitted(script := home.script(then=then))
    script.communicate(timeout=120)
    wait_for(lambda: home.state(job) == "cancelled", "it ends with its script", 120.0)


@pytest.mark.slow
def test_scripts_that_start_at_once_share_one_server(home: Home) -> None:
    client_lock = ClientLock(home.path)  # so that the server does not end between the first of them and the last
    scripts = [home.script(then="run.result(300)", seconds=0.2) for _ in range(4)]
    told = [submitted(script) for script in scripts]
    assert len({url for _, url in told}) == 1 and len({job for job, _ in told}) == 4
    for script in scripts:
        _, errors = script.communicate(timeout=400)
        assert script.returncode == 0, errors
    client_lock.end()
    assert (home.path / "serve.log").read_text().count("Fleetune ") == 1


@pytest.mark.slow
def test_a_server_ends_in_order_once_no_script_lives_and_no_job_runs(home: Home) -> None:
    """It outlives a script whose job goes on, until that job has succeeded."""
    may_end = home.folder / "may-end"
    submitted(script := home.script(detach=True, then="", until=may_end))
    found = local_server(home.path)
    assert found is not None
    _, errors = script.communicate(timeout=120)
    assert script.returncode == 0, errors
    time.sleep(12.0)  # longer than a server waits for somebody
    assert process_lives(found.pid)
    may_end.touch()
    wait_for(lambda: not process_lives(found.pid), "it ends", 240.0)
    assert local_server(home.path) is None
    with contextlib.closing(open_store(str(home.path / "queue.db"))) as store:
        assert [job.state for job in store.jobs()] == ["succeeded"]
    log = (home.path / "serve.log").read_text()
    assert log.rstrip().endswith("stopped; jobs go on") and "Traceback" not in log


@pytest.mark.slow
def test_a_script_outlives_its_server_and_finds_the_next(home: Home) -> None:
    may_end = home.folder / "may-end"
    then = "print(run.result(300).state, client.url, flush=True)"
    job, url = submitted(script := home.script(then=then, until=may_end))
    found = local_server(home.path)
    assert found is not None
    wait_for(lambda: home.state(job) == "running", "it runs")
    os.kill(found.pid, signal.SIGKILL)
    may_end.touch()
    printed, errors = script.communicate(timeout=400)
    assert script.returncode == 0, errors
    assert printed.split()[0] == "succeeded" and printed.split()[1] != url


@pytest.mark.parametrize("own_store", [False, True])
def test_a_server_that_was_started_by_hand_is_used(home: Home, own_store: bool) -> None:
    with open(home.folder / "log", "wb") as log:
        store = ["--store", str(home.folder / "own.db")] if own_store else []
        command = [sys.executable, "-m", "orchestrator", "serve", "--port", "0", *store]
        by_hand = subprocess.Popen(command, cwd=ROOT, env=home.environment(), stdout=log, stderr=log)
    wait_for(lambda: local_server(home.path) is not None, "it is there")
    found = local_server(home.path)
    assert found is not None and found.pid == by_hand.pid
    script = home.script(then="run.result(300)", seconds=0.2)
    _, url = submitted(script)
    script.communicate(timeout=300)  # with its own store, `home.end` would not see the job
    # A script to which it did not answer for seconds would start one, which would find the store taken.
    of_another = home.path / "serve.log"
    assert url == found.url and not (of_another.exists() and "Fleetune " in of_another.read_text())
    home.end()
    by_hand.wait()
    assert not (home.path / "server.json").exists()


def test_a_server_that_does_not_come_up_is_said_with_the_end_of_its_log(home: Home) -> None:
    home.path.mkdir(mode=0o700)
    (home.path / "queue.db").write_bytes(b"this is no database at all, whatever its name says" * 100)
    script = home.script()
    printed, errors = script.communicate(timeout=300)
    assert script.returncode == 1 and printed == ""
    assert "NotStarted: the server of this machine did not start (exit code" in errors
    assert str(home.path / "serve.log") in errors and "queue.db" in errors.rpartition("NotStarted")[2]
