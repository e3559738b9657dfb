"""The API over HTTP, as any client may use it: shapes, statuses, words. One real server on a made-up cluster."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from orchestrator import api
from orchestrator.problem import Problem
from tests.support.processes import wait_for
from tests.support.server import Server, server, spec

_keys = (f"key-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("api"), nodes=1) as found:
        yield found


@pytest.fixture
def client(made_up: Server) -> Iterator[httpx.Client]:
    with made_up.client() as found:
        yield found


def submit(client: httpx.Client, *specs: dict[str, Any], **more: Any) -> list[api.JobView]:
    answer = client.post("/v1/jobs", json={"specs": specs, **more})
    assert answer.status_code == 201, answer.text
    return list(api.JobPage.model_validate_json(answer.content).jobs)


def refused(answer: httpx.Response, status: int, *words: str) -> Problem:
    assert answer.status_code == status, answer.text
    problem = Problem.model_validate_json(answer.content)
    missing = [word for word in words if word not in problem.message]
    assert not missing, problem.message
    return problem


def job(client: httpx.Client, job_id: str) -> api.JobView:
    return api.JobView.model_validate_json(client.get(f"/v1/jobs/{job_id}").raise_for_status().content)


def test_a_submitted_job_is_queued_started_and_cancelled(client: httpx.Client) -> None:
    (sent,) = submit(client, spec("train"))
    assert (sent.name, sent.state, sent.tenant, sent.submitted_by) == ("train", "queued", "default", "local")
    wait_for(lambda: job(client, sent.job_id).state == "running", "it runs")
    assert job(client, sent.job_id).placement == (("n1", 1),)
    assert client.post(f"/v1/jobs/{sent.job_id}/cancel").raise_for_status().json()["wanted"] == "cancel"
    wait_for(lambda: job(client, sent.job_id).state == "cancelled", "it was cancelled")
    refused(client.post(f"/v1/jobs/{sent.job_id}/cancel"), 409, "was cancelled: it is too late")
    events = client.get(f"/v1/jobs/{sent.job_id}/events").json()["events"]
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "queued" and kinds[-1] == "cancelled"
    assert events[0]["data"] == {"reason": "submitted", "by": "local"}
    assert {"by": "local", "wanted": "cancel"} in [event["data"] for event in events]
    why = client.get(f"/v1/jobs/{sent.job_id}/why").json()
    assert why["text"].startswith(why["reason"]) and why["text"].endswith(f"\nto do: {why['next_step']}")
    path, newest, before = f"/v1/jobs/{sent.job_id}/events", list[str](), 2**62
    while before:  # a page at a time, until there are no others
        page = client.get(path, params={"before": before, "limit": 2}).json()
        newest, before = [*newest, *(event["kind"] for event in page["events"])], page["last"]
    assert newest == kinds[::-1]
    assert client.post(f"/v1/jobs/{sent.job_id}/retry").raise_for_status().json()["state"] == "queued"
    client.post(f"/v1/jobs/{sent.job_id}/cancel")


def test_jobs_come_back_in_the_order_of_their_specs(client: httpx.Client) -> None:
    names = [f"many-{number}" for number in range(300)]
    assert [one.name for one in submit(client, *(spec(name, gpus=8) for name in names))] == names
    first = client.get("/v1/jobs", params={"name": "many-", "limit": 200}).json()
    second = client.get("/v1/jobs", params={"name": "many-", "limit": 200, "before": first["next"]}).json()
    listed = [one["name"] for one in (*first["jobs"], *second["jobs"])]
    assert listed == names[::-1]
    assert second["next"] is None
    oldest = client.get("/v1/jobs", params={"name": "many-", "limit": 200, "after": 0}).json()
    rest = client.get("/v1/jobs", params={"name": "many-", "limit": 200, "after": oldest["next"]}).json()
    assert [one["name"] for one in (*oldest["jobs"], *rest["jobs"])] == names and rest["next"] is None
    for one in (*first["jobs"], *second["jobs"]):
        client.post(f"/v1/jobs/{one['job_id']}/cancel")


def test_one_of_several_that_is_wrong_queues_none(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={"specs": [spec("fine"), {**spec("broken"), "command": []}]})
    problem = refused(answer, 400, "spec 2: command: ")
    assert [(one.spec, one.field) for one in problem.items] == [(2, "command")]
    assert problem.message == f"spec 2: command: {problem.items[0].message}"
    for name in ("fine", "broken"):
        assert client.get("/v1/jobs", params={"name": name}).json()["jobs"] == []


def test_the_same_key_gives_the_same_jobs_and_not_other_ones(client: httpx.Client) -> None:
    key = next(_keys)
    first = submit(client, spec("a"), spec("b"), key=key)
    again = submit(client, spec("a"), spec("b"), key=key)
    assert [one.job_id for one in first] == [one.job_id for one in again]
    turned = {name: spec("a")[name] for name in reversed(spec("a"))}
    assert [one.job_id for one in submit(client, turned, spec("b"), key=key)] == [one.job_id for one in first]
    refused(client.post("/v1/jobs", json={"specs": [spec("c")], "key": key}), 409, key)


def test_two_clients_with_one_key_at_once_get_one_job(made_up: Server) -> None:
    barrier = threading.Barrier(8)

    def send(key: str) -> str:
        with made_up.client() as one:
            barrier.wait()
            return submit(one, spec("twins"), key=key)[0].job_id

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(send, [next(_keys)] * 8))) == 1


def test_what_was_taken_is_answered_again_also_if_it_would_not_be_taken_any_more(client: httpx.Client) -> None:
    (parent,) = submit(client, spec("parent"))
    child, key = spec("child", queue={"after": [parent.job_id]}), next(_keys)
    (first,) = submit(client, child, key=key)
    client.post(f"/v1/jobs/{parent.job_id}/cancel")
    wait_for(lambda: job(client, parent.job_id).state == "cancelled", "the parent is cancelled")
    assert submit(client, child, key=key)[0].job_id == first.job_id
    assert client.post("/v1/jobs", json={"specs": [child]}).status_code in (400, 409)


def test_changes_are_told_from_where_one_began(client: httpx.Client) -> None:
    began = client.get("/v1/changes").json()
    assert began["jobs"] == []
    (sent,) = submit(client, spec("watched"))
    seen, last = list[str](), began["last"]

    def saw_it_run() -> bool:
        nonlocal last
        told = client.get("/v1/changes", params={"after": last}).json()
        assert told["last"] >= last
        last = told["last"]
        seen.extend(one["state"] for one in told["jobs"] if one["job_id"] == sent.job_id)
        return "running" in seen

    wait_for(saw_it_run, "its changes were told")
    later = client.get("/v1/changes", params={"after": last}).json()
    assert later["jobs"] or later["last"] == last  # jobs of other tests may change
    assert sent.job_id not in {one["job_id"] for one in later["jobs"]}
    client.post(f"/v1/jobs/{sent.job_id}/cancel")


def test_who_knows_more_changes_than_a_restored_store_has_is_told_where_it_is(client: httpx.Client) -> None:
    told = client.get("/v1/changes", params={"after": 2**40}).json()
    assert told["jobs"] == [] and 1 <= told["last"] < 2**40


def test_settings_of_a_tenant_that_have_changed_since_they_were_read_are_not_overwritten(client: httpx.Client) -> None:
    def put(version: str, weight: float) -> httpx.Response:
        return client.put("/v1/tenants/versions", params={"version": version}, json={"weight": weight})

    read = put("", 2.0).raise_for_status().json()["version"]
    assert put(read, 3.0).is_success
    late = put(read, 4.0)
    assert (late.status_code, late.json()["error"]) == (409, "TenantChanged")


def test_lists_are_filtered_by_state_name_and_tenant(client: httpx.Client) -> None:
    client.put("/v1/tenants/filters", json={"weight": 2.0}).raise_for_status()
    (sent,) = submit(client, spec("filtered", gpus=8, queue={"tenant": "filters"}))
    client.post(f"/v1/jobs/{sent.job_id}/cancel")
    wait_for(lambda: job(client, sent.job_id).state == "cancelled", "it was cancelled")

    def listed(**given: Any) -> list[str]:
        return [one["job_id"] for one in client.get("/v1/jobs", params=given).raise_for_status().json()["jobs"]]

    assert listed(tenant="filters") == [sent.job_id]
    assert listed(tenant="filters", state=["cancelled", "failed"]) == [sent.job_id]
    assert listed(tenant="filters", state="running") == []
    assert listed(name=sent.job_id[:-2]) == [sent.job_id]
    assert listed(tenant="nobody") == []
    assert client.get("/v1/counts", params={"tenant": "filters"}).json() == {"states": {"cancelled": 1}}


def test_the_priority_of_a_waiting_job_is_changed(client: httpx.Client) -> None:
    (sent,) = submit(client, spec("urgent", gpus=8))
    assert client.put(f"/v1/jobs/{sent.job_id}/priority", json={"priority": 7}).json()["priority"] == 7
    answer = client.put(f"/v1/jobs/{sent.job_id}/priority", json={"priority": 1001})
    problem = refused(answer, 422, "body.priority", "1000")
    assert [one.field for one in problem.items] == ["body.priority"]
    client.post(f"/v1/jobs/{sent.job_id}/cancel")


def test_a_node_is_emptied_and_used_again(client: httpx.Client) -> None:
    answer = client.put("/v1/nodes/n1", json={"order": "cordon", "reason": "fan"}).raise_for_status().json()
    assert (answer["order"], answer["by"], answer["reason"]) == ("cordon", "local", "fan")
    assert client.get("/v1/nodes").json()["nodes"][0]["order"] == "cordon"
    assert client.put("/v1/nodes/n1", json={"order": "use"}).json()["order"] == "use"
    refused(client.put("/v1/nodes/n9", json={"order": "drain"}), 404, "n9")


def test_a_dependency_on_what_is_not_there_or_on_itself_is_refused(client: httpx.Client) -> None:
    refused(
        client.post("/v1/jobs", json={"specs": [spec("x", queue={"after": ["nothing-here"]})]}), 404, "nothing-here"
    )
    (parent,) = submit(client, spec("failed-parent"))
    client.post(f"/v1/jobs/{parent.job_id}/cancel")
    wait_for(lambda: job(client, parent.job_id).state == "cancelled", "the parent is cancelled")
    refused(client.post("/v1/jobs", json={"specs": [spec("x", queue={"after": [parent.job_id]})]}), 409, parent.job_id)


def test_the_spec_comes_back_without_what_looks_secret(client: httpx.Client) -> None:
    (sent,) = submit(client, spec("env", env={"HF_TOKEN": "hunter22", "EPOCHS": "3"}))
    answer = client.get(f"/v1/jobs/{sent.job_id}/spec")
    assert answer.json()["env"] == {"HF_TOKEN": "***", "EPOCHS": "3"}
    assert "hunter22" not in answer.text


def test_unknown_things_are_404_and_say_what_was_meant(client: httpx.Client) -> None:
    (sent,) = submit(client, spec("nearly"))
    problem = refused(client.get(f"/v1/jobs/{sent.job_id[:-1]}"), 404, "did you mean", sent.job_id)
    assert problem.meant == (sent.job_id,)
    for path in ("", "/spec", "/events", "/why", "/logs", "/logs/output", "/metrics"):
        refused(client.get(f"/v1/jobs/zzz{path}"), 404, "zzz")
    for path in ("cancel", "pause", "resume", "retry"):
        refused(client.post(f"/v1/jobs/zzz/{path}"), 404, "zzz")
    refused(client.get("/v1/nothing"), 404)
    refused(client.get("/v1/jobs/"), 404)
    refused(client.delete("/v1/jobs"), 405)


def test_server_me_health_and_metrics(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    # A server that stands still for most of a term does not lead before its next pass.
    wait_for(lambda: client.get("/readyz").json() == {"status": "ready"}, "it is ready")
    wait_for(lambda: client.get("/v1/server").json()["leads"], "it leads")
    about = client.get("/v1/server").json()
    assert (about["engine"], about["api"]) == ("fake", "1")
    assert client.get("/v1/me").json() == {"name": "local", "role": "admin", "tenant": None, "tokens_needed": False}
    (sent,) = submit(client, spec("counted"))
    assert job(client, sent.job_id).name == "counted"
    lines = ('fleetune_jobs{state="running",tenant="default"}', 'fleetune_gpus{of="all"} 8.0', "fleetune_leader 1.0")
    wait_for(lambda: all(line in client.get("/metrics").text for line in lines), "a job that runs is counted")
    text = client.get("/metrics").text
    assert 'route="/v1/jobs/{job_id}"' in text
    assert "zzz" not in text


def test_usage_is_told_by_month(client: httpx.Client) -> None:
    rows = client.get("/v1/usage").raise_for_status().json()["rows"]
    assert {row["tenant"] for row in rows} >= {"default"}
    for month in ("0001-01", "1999-01", "9999-12"):
        assert client.get("/v1/usage", params={"month": month}).json() == {"rows": []}
    refused(client.get("/v1/usage", params={"month": "1999-13"}), 422, "month")


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "body"),
        (b"{", 422, "no JSON"),
        (b"null", 422, "body"),
        (b"[]", 422, "body"),
        (b'{"specs": []}', 422, "body.specs"),
        (b'{"specs": [1]}', 422, "body.specs[0]"),
        (b'{"specs": [{}], "colour": "hunter22"}', 422, "body.colour"),
        (b'{"specs": [{"name": NaN}]}', 422, "no JSON"),
        (b'{"specs": [{"name": 1e999}]}', 422, "not finite"),
        (b'{"specs": [{"name": ' + b"9" * 5000 + b"}]}", 422, "no JSON"),
        (b'{"specs": [{"name": ' + b"9" * 400 + b"}]}", 400, ""),
        (b'{"specs": [{"name": "\\ud800"}]}', 422, "no JSON"),
        (b'{"specs": [{"kind": "command", "name": "a\\u0000b", "command": ["true"]}]}', 400, ""),
        (b'{"specs": [{"name": "\xff"}]}', 422, "no JSON"),
        (b'{"specs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "no JSON"),
        (b'{"specs": [{"a": ' + b"[" * 150 + b"]" * 150 + b"}]}", 400, ""),
        (b'{"specs": [{}], "key": ""}', 422, "body.key"),
        (json.dumps({"specs": [{}] * (api.MOST_JOBS + 1)}).encode(), 422, "body.specs"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused(client: httpx.Client, body: bytes, status: int, words: str) -> None:
    problem = refused(client.post("/v1/jobs", content=body, headers=JSON), status, words)
    assert "hunter22" not in problem.message
    assert len(problem.message) < 5000


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_does_not_say_that_it_is_json_is_refused(client: httpx.Client, kind: str) -> None:
    content = json.dumps({"specs": [spec("sneaked-in")]})
    refused(client.post("/v1/jobs", content=content, headers={"Content-Type": kind}), 415, "Content-Type")
    assert client.get("/v1/jobs", params={"name": "sneaked-in"}).json()["jobs"] == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "before=-1", "before=99999999999999999999", "state=asleep", "limit=NaN"],
)
def test_a_wrong_parameter_is_named(client: httpx.Client, query: str) -> None:
    refused(client.get(f"/v1/jobs?{query}"), 422, f"query.{query.partition('=')[0]}")


@pytest.mark.parametrize(
    "job_id", ["%00", "%ff", "..%2f..%2fetc%2fpasswd", "%F0%9F%98%80", "a" * 299, "'; DROP TABLE jobs"]
)
def test_strange_ids_are_unknown_jobs(client: httpx.Client, job_id: str) -> None:
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert client.get("/v1/jobs", params={"name": "\x00\U0010ffff'"}).status_code in (200, 400)


def test_a_body_that_says_it_is_too_large_is_not_read(made_up: Server) -> None:
    with socket.create_connection(("127.0.0.1", made_up.port)) as connection:
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {1 << 40}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode())
        connection.settimeout(240.0)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_in_chunks_is_counted(client: httpx.Client) -> None:
    piece = b" " * (1 << 20)
    answer = client.post("/v1/jobs", content=itertools.repeat(piece, (api.MOST_BYTES >> 20) + 2), headers=JSON)
    refused(answer, 413, "67,108,864")


def test_the_schema_documents_every_route(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").raise_for_status().json()
    open_to_all = {"/healthz", "/readyz"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert ("security" in operation) is (path not in open_to_all), (method, path)
            success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
            assert success["content"], (method, path)
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert client.get("/docs").status_code == 404
