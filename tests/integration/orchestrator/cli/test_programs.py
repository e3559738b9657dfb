"""What programs read from the commands of the queue, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, server
from tests.support.shell import Shell


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("server"), local=True) as found:
        yield found


@pytest.fixture
def fleetune(here: Server, tmp_path: Path) -> Shell:
    return Shell(here, tmp_path)


def test_json_of_a_job_that_is_waited_for_is_all_that_is_printed(fleetune: Shell) -> None:
    code, printed, errors = fleetune("submit", fleetune.command("echo hi"), "--wait", "--json")
    (job,) = json.loads(printed)
    assert code == 0 and job["state"] == "succeeded" and f"queued {job['job_id']}" in errors
    code, printed, _ = fleetune("submit", fleetune.command("echo hi"), "--follow", "--json")
    line, (job,) = map(json.loads, printed.splitlines())
    assert code == 0 and line["text"].endswith("hi") and job["state"] == "succeeded"


def test_json_of_the_queue_has_every_job(fleetune: Shell) -> None:
    first = fleetune.sleeping()
    numbers = ",".join(map(str, range(55)))
    spec = fleetune.command("true")
    jobs = fleetune.good("submit", spec, "--sweep", f"env.N={numbers}", "--after", first).split()
    assert {job["job_id"] for job in json.loads(fleetune.good("queue", "--json"))} == {first, *jobs}
    assert len(json.loads(fleetune.good("queue", "--json", "--limit", "7"))) == 7
    table = fleetune.good("queue")
    assert sum(job in table for job in jobs) == 49
    fleetune.good("cancel", first)  # and those that come after it fail


def test_a_name_with_signs_of_urls_reaches_the_server_whole(fleetune: Shell) -> None:
    code, _, errors = fleetune("tokens", "revoke", "x?y")
    assert code == 2 and "'x?y'" in errors
