"""What only Ray's jobs can show: others on the same cluster, tokens, and a supervisor that is killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.backend import Launch, Phase
from cluster.errors import BackendUnreachable, LaunchRefused
from cluster.ray.backend import RayJobsBackend
from cluster.ray.client import OutputRetention, has_no_log, ray_client
from tests.support.backends import Machines, Program, machines
from tests.support.gangs import FORKED
from tests.support.processes import command_of, originals, processes_with, wait_for
from tests.support.raycluster import RayHead, ray_head

pytestmark = pytest.mark.slow

HOLDS_TWO_CPUS = """
import time, ray
from ray.util.placement_group import placement_group
ray.init()
ray.get(placement_group([{"CPU": 2}]).ready())
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(PYTHONPATH=FORKED) as head:
        yield head


@pytest.fixture
def opened(head: RayHead, tmp_path: pathlib.Path) -> Iterator[Machines]:
    with machines("ray", tmp_path, head) as made:
        yield made


def supervisors(opened: Machines) -> list[int]:
    found = processes_with(f"FLEETUNE_TEST={opened.mark}")
    return originals(pid for pid in found if b"JobSupervisor" in command_of(pid))


def test_a_program_whose_supervisor_is_killed_is_lost(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", Program(forever=True)))
    wait_for(lambda: len(supervisors(opened)) == 1, "it has one")
    os.kill(supervisors(opened)[0], signal.SIGKILL)
    end = opened.ended(launch)
    assert end.phase is Phase.LOST and "died" in end.message


def test_somebody_else_s_job_is_not_listed_not_stopped_and_keeps_its_name(opened: Machines, head: RayHead) -> None:
    mine = opened.launch("a")
    with _rays_own_client(head) as client:
        client.submit_job(entrypoint="sleep 1000", submission_id=mine.submission)
        assert opened.state(mine) is None
        with pytest.raises(LaunchRefused, match="somebody else has a job of that name"):
            opened.backend.start(mine, opened.fence)
        opened.backend.stop(mine.submission, hard=True)
        wait_for(lambda: client.get_job_status(mine.submission).value == "RUNNING", "it runs", 240.0)
        client.stop_job(mine.submission)
        wait_for(lambda: client.get_job_status(mine.submission).is_terminal(), "it has ended", 240.0)


def test_what_is_used_and_not_ours_is_foreign(opened: Machines, head: RayHead) -> None:
    launch = opened.command("a", sys.executable, "-c", HOLDS_TWO_CPUS)
    opened.backend.start(launch, opened.fence)
    opened.wait_for(lambda: [node.foreign_cpus for node in opened.backend.inventory().nodes] == [2], "it holds 2 CPUs")
    (node,) = opened.backend.inventory().nodes
    assert node.cpus == 4 and node.usable
    assert opened.backend.others() == []  # our own program has taken them
    with _rays_own_client(head) as client:
        client.submit_job(entrypoint="sleep 1000", submission_id="somebody")
        wait_for(lambda: opened.backend.others() == ["somebody"], "it is named", 240.0)
        assert opened.backend.ended_elsewhere(["somebody", "nobody"]) == frozenset()
        client.stop_job("somebody")
        wait_for(lambda: opened.backend.ended_elsewhere(["somebody", "nobody"]) == {"somebody"}, "it has ended", 240.0)
        assert opened.backend.others() == []
    ours = RayJobsBackend(head.dashboard, token=head.token, foreign=lambda use: dict.fromkeys(use, (1.0, 0.0)))
    assert [node.foreign_cpus for node in ours.inventory().nodes] == [1]


def test_a_working_dir_travels_with_the_job_and_one_that_is_not_there_is_refused(opened: Machines) -> None:
    (opened.traces / "sent").mkdir()
    (opened.traces / "sent" / "letter").write_text("hello")
    launch = Launch(f"{opened.prefix}a", ("cat", "letter"), working_dir=str(opened.traces / "sent"))
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).exit_code == 0
    opened.wait_for(lambda: opened.backend.output(launch.submission), "its output is there")
    assert opened.backend.output(launch.submission) == b"hello"
    gone = Launch(f"{opened.prefix}b", ("true",), working_dir=str(opened.traces / "gone"))
    with pytest.raises(LaunchRefused, match="gone"):
        opened.backend.start(gone, opened.fence)
    assert opened.state(gone) is None


def test_without_the_right_token_the_cluster_does_not_answer_and_the_error_says_so(head: RayHead) -> None:
    for token in (None, "wrong"):
        with pytest.raises(BackendUnreachable, match="Authentication"):
            RayJobsBackend(head.dashboard, token=token).submissions()


def test_the_given_address_counts_whatever_ray_s_variables_say(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert RayJobsBackend(head.dashboard, token=head.token).inventory().nodes


@contextlib.contextmanager
def _rays_own_client(head: RayHead) -> Iterator[Any]:
    from ray.job_submission import JobSubmissionClient

    yield JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {head.token}"})


def test_what_strangers_and_other_queues_leave_on_the_cluster_stops_nobody(opened: Machines, head: RayHead) -> None:
    with _rays_own_client(head) as client:
        for number, metadata in enumerate(({"fleetune.kind": "program"}, {"fleetune.kind": "fence", "x": "1"})):
            name = f"{opened.prefix}stranger-{number}"
            client.submit_job(entrypoint="true", submission_id=name, metadata={**metadata, "fleetune.fence": "many"})
    other = RayJobsBackend(head.dashboard, token=head.token, queue="other")
    other.fence(10**9)
    launch = opened.launch("a")
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).exit_code == 0
    assert launch.submission not in {one.submission for one in other.submissions()}


def test_entries_of_attempts_that_are_over_are_deleted_and_no_name_is_started_twice_before(
    opened: Machines, head: RayHead
) -> None:
    soon = OutputRetention(kept_s=0.0, least_s=0.0)
    backend = RayJobsBackend(head.dashboard, token=head.token, keeping=soon)
    launch = opened.started(opened.launch("a"))
    assert opened.ended(launch).exit_code == 0
    backend.submissions()
    with _rays_own_client(head) as client:

        def names() -> set[str]:
            return {job.submission_id for job in client.list_jobs()}

        before = names()
        opened.backend.start(launch, opened.fence)  # its name is taken: nothing happens
        backend.forget([])
        assert launch.submission in before and names() <= before  # helpers of other tests go
        backend.forget([launch.submission])
        assert launch.submission not in names()
    assert launch.submission not in {one.submission for one in backend.submissions()}
    assert backend.output(launch.submission) == b""


def test_ray_says_of_a_log_that_it_does_not_exist(head: RayHead) -> None:
    client = ray_client(head.dashboard, head.token, 60.0)
    (node,) = RayJobsBackend(head.dashboard, token=head.token).inventory().nodes
    for node_id in (node.node_id, "0" * len(node.node_id)):
        path = f"/api/v0/logs/file?node_id={node_id}&filename=job-driver-nothing.log&lines=-1"
        answer = client._do_request("GET", path)
        assert has_no_log(answer.status_code, answer.text), (answer.status_code, answer.text)
