"""Which job is meant: by its id, a start of it, or the run that it writes."""

from __future__ import annotations

import httpx
import pytest

from cluster.errors import InputError
from orchestrator.api import JobPage, JobView
from orchestrator.client.connection import Connection
from orchestrator.client.lookup import find_job
from orchestrator.problem import Problem
from orchestrator.queue.errors import UnknownJob
from tests.support.jobviews import job

RUN = "/runs/mails-20261124-115900-0001"
JOBS = (
    job("mails-aaaaaa", run=RUN),
    job("mails-bbbbbb", run="/runs/mails-20261125-120000-0002"),
    job("mails-big-cccccc", run="/runs/mails-big-20261125-120000-0003"),
    job("a-ffffff"),
)


def answer(request: httpx.Request) -> httpx.Response:
    """As the server answers for one job, and for a page of those whose ids start with a name."""
    if request.url.path == "/v1/server":
        server = {"version": "1", "api": "1", "leads": True, "leader_url": None, "engine": "ray", "machine": "m"}
        return httpx.Response(200, json={**server, "shared": [], "retention_days": 90.0})
    if request.url.path != "/v1/jobs":
        given = request.url.path.rpartition("/")[2]
        found = [one for one in JOBS if one.job_id == given]
        if found:
            return httpx.Response(200, content=found[0].model_dump_json())
        return httpx.Response(404, json=Problem(error="UnknownJob", message="no").model_dump())
    start = request.url.params.get("name", "")
    page = JobPage(jobs=tuple(one for one in JOBS if one.job_id.startswith(start)), next=None)
    return httpx.Response(200, content=page.model_dump_json())


def find(given: str) -> JobView:
    return find_job(Connection("http://127.0.0.1:1", transport=httpx.MockTransport(answer)), given)


@pytest.mark.parametrize("given", ["mails-aaaaaa", "mails-a", "mails-20261124-115900-0001", "mails-20261124"])
def test_a_job_is_found_by_its_id_or_its_run_or_a_start_of_either(given: str) -> None:
    assert find(given) == JOBS[0]


def test_a_start_that_several_share_is_refused_with_their_ids() -> None:
    with pytest.raises(InputError, match="may mean several jobs: mails-aaaaaa, mails-bbbbbb, mails-big-cccccc"):
        find("mails-")


def test_a_run_that_no_job_writes_is_answered_with_the_command_for_runs() -> None:
    with pytest.raises(UnknownJob, match="fleetune show mails-20261201-115900-0001"):
        find("mails-20261201-115900-0001")


def test_an_unknown_id_is_answered_with_the_jobs_of_that_name() -> None:
    with pytest.raises(UnknownJob, match="jobs of that name are a-ffffff"):
        find("a-012345")


def test_it_may_also_have_been_removed_with_the_server_s_old_jobs() -> None:
    with pytest.raises(UnknownJob, match=r"your own runs\. Jobs that ended more than 90 days ago are removed"):
        find("gone-012345")


def test_a_misspelt_name_is_answered_with_the_name() -> None:
    with pytest.raises(UnknownJob, match=r"there is no job 'mials'; did you mean mails\?"):
        find("mials")


def test_a_name_that_is_like_no_job_is_answered_with_both_lists() -> None:
    with pytest.raises(UnknownJob, match="`fleetune queue --all` lists the jobs, and `fleetune runs` your own runs"):
        find("quite-different")
