"""Who may do what: every route of the server, asked by everybody."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from orchestrator.controller.set_aside import KIND as SET_ASIDE
from orchestrator.queue.records import QueueEvent
from orchestrator.service.context.identity import attempt_token
from orchestrator.store import open_store
from tests.support.processes import wait_for
from tests.support.server import Server, server, spec

NOBODY = ("none", "wrong", "attempt")
PEOPLE = ("viewer", "viewer-a", "viewer-b", "member-a", "member-b", "admin")
EVERYBODY = (*NOBODY, *PEOPLE)
OK = 200  # or what else is no refusal

# What each is answered about a job of tenant a, in the order of PEOPLE.
ANYBODY = (OK, OK, OK, OK, OK, OK)
READS_A = (OK, OK, 404, OK, 404, OK)
MOVES_A = (403, 403, 403, OK, 404, OK)
SENDS_A = (403, 403, 403, OK, 403, OK)
ADMIN = (403, 403, 403, 403, 403, OK)

PEOPLES: dict[str, tuple[int, ...]] = {
    "POST /v1/jobs": SENDS_A,
    "GET /v1/jobs": ANYBODY,
    "GET /v1/counts": ANYBODY,
    "GET /v1/changes": ANYBODY,
    "GET /v1/jobs/{job_id}": READS_A,
    "GET /v1/jobs/{job_id}/spec": READS_A,
    "GET /v1/jobs/{job_id}/events": READS_A,
    "GET /v1/jobs/{job_id}/why": READS_A,
    "GET /v1/jobs/{job_id}/logs": READS_A,
    "GET /v1/jobs/{job_id}/logs/{source}": READS_A,
    "GET /v1/jobs/{job_id}/metrics": READS_A,
    "POST /v1/jobs/{job_id}/cancel": MOVES_A,
    "POST /v1/jobs/{job_id}/pause": MOVES_A,
    "POST /v1/jobs/{job_id}/resume": MOVES_A,
    "POST /v1/jobs/{job_id}/retry": MOVES_A,
    "PUT /v1/jobs/{job_id}/priority": MOVES_A,
    "POST /v1/jobs/{job_id}/release": ADMIN,
    "GET /v1/events": ANYBODY,
    "GET /v1/nodes": ANYBODY,
    "PUT /v1/nodes/{node_id}": ADMIN,
    "GET /v1/tenants": ANYBODY,
    "PUT /v1/tenants/{tenant}": ADMIN,
    "GET /v1/usage": ANYBODY,
    "GET /v1/tokens": ADMIN,
    "POST /v1/tokens": ADMIN,
    "DELETE /v1/tokens/{name}": ADMIN,
    "GET /v1/server": ANYBODY,
    "GET /v1/me": ANYBODY,
    "GET /metrics": ANYBODY,
    "POST /v1/guest/join": SENDS_A,
    "POST /v1/guest/look": READS_A,
}
DRIVERS = ("POST /v1/driver/register", "POST /v1/driver/beat")
OPEN = ("GET /healthz", "GET /readyz")
ROUTES = (*PEOPLES, *DRIVERS, *OPEN)
GUEST = {
    "name": "guest",
    "model": {"path": "org/model", "task": "causal-lm"},
    "data": {"train": "s3://bucket/data.jsonl", "format": "text"},
    "storage_path": "s3://bucket/runs",
    "queue": {"tenant": "a"},
}
_addresses = (f"127.1.{number >> 8}.{number & 255}" for number in itertools.count(1))
_names = (f"made-{number}" for number in itertools.count())


@dataclass(frozen=True)
class World:
    """`job`: one of tenant a that runs, on its first attempt."""

    server: Server
    tokens: dict[str, str | None]
    job: str

    def client(self, who: str) -> httpx.Client:
        """From an address of its own: failures are counted by address."""
        return self.server.client(self.tokens[who], next(_addresses))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with server(tmp_path_factory.mktemp("roles")) as found:
        with found.client() as client:
            for team in ("a", "b"):
                client.put(f"/v1/tenants/{team}", json={}).raise_for_status()
            sent = client.post("/v1/jobs", json={"specs": [running()]}).raise_for_status().json()["jobs"][0]["job_id"]
            wait_for(lambda: client.get(f"/v1/jobs/{sent}").json()["state"] == "running", "it runs")
        tokens: dict[str, str | None] = {"none": None, "wrong": "ft_" + "x" * 43, "admin": found.token("root", "admin")}
        with found.client(tokens["admin"]) as admin:
            for role, tenant in (("viewer", None), *itertools.product(("viewer", "member"), ("a", "b"))):
                name = f"{role}-{tenant}" if tenant else role
                made = admin.post("/v1/tokens", json={"name": name, "role": role, "tenant": tenant})
                tokens[name] = made.raise_for_status().json()["token"]
        store = open_store(found.store)
        tokens["attempt"] = attempt_token(store.facts()["driver_key"], sent, 1)
        store.close()
        with found.client() as client:
            wait_for(lambda: client.get("/v1/me").status_code == 401, "tokens are needed")
        yield World(found, tokens, sent)


def running() -> dict[str, Any]:
    return spec("of-a", queue={"tenant": "a"})


def body_of(route: str, job: str) -> dict[str, Any] | None:
    bodies: dict[str, dict[str, Any]] = {
        "POST /v1/jobs": {"specs": [spec("more", gpus=8, queue={"tenant": "a"})]},
        "PUT /v1/jobs/{job_id}/priority": {"priority": -1},
        "PUT /v1/nodes/{node_id}": {"order": "use"},
        "PUT /v1/tenants/{tenant}": {},
        "POST /v1/tokens": {"name": next(_names), "role": "viewer"},
        "POST /v1/guest/join": {
            "key": next(_names),
            "submission": "raysubmit_1",
            "environment": "0123456789abcdef",
            "spec": GUEST,
        },
        "POST /v1/guest/look": {"job_id": job},
        "POST /v1/driver/register": {"job_id": job, "attempt": 1},
        "POST /v1/driver/beat": {"job_id": job, "attempt": 1},
    }
    return bodies.get(route)


def ask(world: World, who: str, route: str, job: str) -> httpx.Response:
    method, _, path = route.partition(" ")
    filled = path.format(job_id=job, source="output", node_id="n1", tenant="a", name=made_token(world, route))
    with world.client(who) as client:
        return client.request(method, filled, json=body_of(route, job))


def made_token(world: World, route: str) -> str:
    """One that may be revoked."""
    if not route.startswith("DELETE"):
        return ""
    name = next(_names)
    with world.client("admin") as client:
        client.post("/v1/tokens", json={"name": name, "role": "viewer"}).raise_for_status()
    return name


def status(answer: httpx.Response) -> int:
    """OK, or the status of a refusal. That a job cannot do a thing now is none, nor that it has not written yet."""
    if answer.status_code < 300 or answer.status_code == 409:
        return OK
    if answer.status_code == 404 and answer.json()["error"] == "UnknownSource":
        return OK
    return answer.status_code


def expected(route: str, who: str) -> int:
    if route in OPEN:
        return OK
    if route in DRIVERS:
        return OK if who == "attempt" else 401
    return PEOPLES[route][PEOPLE.index(who)] if who in PEOPLE else 401


def job_for(world: World, route: str) -> str:
    """The one that runs, or, for what changes it, one that waits."""
    if "{job_id}" not in route or route.startswith("GET"):
        return world.job
    with world.client("admin") as client:
        sent = client.post("/v1/jobs", json={"specs": [spec("moved", gpus=8, queue={"tenant": "a"})]})
        return str(sent.raise_for_status().json()["jobs"][0]["job_id"])


@pytest.mark.parametrize("route", ROUTES)
def test_everybody_is_answered_as_the_table_says(world: World, route: str) -> None:
    found = {who: status(ask(world, who, route, job_for(world, route))) for who in EVERYBODY}
    assert found == {who: expected(route, who) for who in EVERYBODY}


def test_the_table_has_every_route_of_the_server(world: World) -> None:
    with world.client("none") as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == set(ROUTES)


@pytest.mark.parametrize("path", ["", "/spec", "/events", "/why", "/logs", "/logs/output", "/metrics"])
def test_others_jobs_look_like_jobs_that_are_not_there(world: World, path: str) -> None:
    there, not_there = world.job, world.job[:-1] + ("x" if world.job[-1] != "x" else "y")
    with world.client("member-b") as client:
        answers = [client.get(f"/v1/jobs/{job_id}{path}") for job_id in (there, not_there)]
        assert [answer.status_code for answer in answers] == [404, 404]
        first, second = (
            answer.text.replace(job_id, "ID") for answer, job_id in zip(answers, (there, not_there), strict=True)
        )
        assert first == second
        assert client.get(f"/v1/jobs/{there[:-2]}{path}").text.count(there) == 0


def test_others_are_in_no_list(world: World) -> None:
    with world.client("member-b") as client:
        mine = client.post("/v1/jobs", json={"specs": [spec("of-b", queue={"tenant": "b"})]}).raise_for_status()
        own = mine.json()["jobs"][0]["job_id"]
        began = client.get("/v1/changes").json()["last"]
        assert {one["tenant"] for one in client.get("/v1/jobs").json()["jobs"]} == {"b"}
        for query in ("tenant=a", f"name={world.job}", "tenant=nobody"):
            assert client.get(f"/v1/jobs?{query}").json()["jobs"] == []
        assert client.get("/v1/counts?tenant=a").json() == {"states": {}}
        assert sum(client.get("/v1/counts").json()["states"].values()) == len(client.get("/v1/jobs").json()["jobs"])
        assert client.get("/v1/usage?tenant=a").json() == {"rows": []}
        assert {row["tenant"] for row in client.get("/v1/usage").json()["rows"]} <= {"b"}
        assert [one["name"] for one in client.get("/v1/tenants").json()["tenants"]] == ["b"]
        assert world.job not in client.get("/v1/events").text
        assert own in client.get("/v1/events").text
        newest = client.get("/v1/events", params={"before": 2**62}).json()
        assert world.job not in str(newest) and own in str(newest) and newest["last"] == 0
        assert world.job not in client.get("/v1/nodes").text
        assert 'tenant="a"' not in client.get("/metrics").text
        with world.client("admin") as admin:
            admin.put(f"/v1/jobs/{world.job}/priority", json={"priority": 3}).raise_for_status()
        told = client.get(f"/v1/changes?after={began}").json()
        assert told["last"] > began
        assert world.job not in [one["job_id"] for one in told["jobs"]]


def test_no_hint_of_others_is_in_what_a_submission_is_refused_with(world: World) -> None:
    with world.client("member-b") as client:
        for wrong in ({"tenant": "b", "after": [world.job[:-1]]}, {"tenant": "b", "after": [world.job]}):
            answer = client.post("/v1/jobs", json={"specs": [spec("hint", queue=wrong)]})
            assert answer.status_code in (400, 403, 404)
            assert "did you mean" not in answer.text
        near, far = (
            client.post("/v1/jobs", json={"specs": [spec("hint", queue={"tenant": tenant})]}) for tenant in ("a", "zzz")
        )
        assert near.status_code == far.status_code == 403
        assert near.text.replace("'a'", "T") == far.text.replace("'zzz'", "T")


def test_a_member_raises_no_priority_and_an_admin_does(world: World) -> None:
    path = f"/v1/jobs/{job_for(world, 'PUT /v1/jobs/{job_id}/priority')}/priority"
    with world.client("member-a") as member, world.client("admin") as admin:
        answer = member.put(path, json={"priority": 1})
        assert answer.status_code == 403 and "priority 1 is above 0" in answer.json()["message"]
        sent = {"specs": [spec("high", queue={"tenant": "a", "priority": 1000})]}
        assert member.post("/v1/jobs", json=sent).status_code == 403
        assert admin.put(path, json={"priority": 1000}).json()["priority"] == 1000
        assert admin.put(path, json={"priority": 1001}).status_code == 422


def test_changes_of_tenants_and_tokens_are_told_to_those_they_concern(world: World) -> None:
    with world.client("admin") as admin, world.client("member-a") as of_a, world.client("member-b") as of_b:
        admin.put("/v1/tenants/a", json={"restrictions": {"max_queued_jobs": 77}}).raise_for_status()
        texts = [client.get("/v1/events", params={"limit": 1000}).text for client in (admin, of_a, of_b)]
        assert ["root changes tenant a: max_queued_jobs none -> 77" in text for text in texts] == [True, True, False]
        assert ["root makes the token member-b" in text for text in texts] == [True, False, False]


def test_rows_that_cannot_be_read_are_named_to_admins_and_counted_for_everybody(world: World) -> None:
    with contextlib.closing(open_store(world.server.store)) as store:
        store.add_events([QueueEvent(0.0, SET_ASIDE, "token secret-project is set aside")])
    path = world.server.store.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=60.0)) as raw, world.client("admin") as admin, raw:
        raw.execute("INSERT INTO tokens SELECT 'hidden', 999, 'x', 'of-a-newer-release', NULL, 0, NULL, NULL")
        raw.commit()
        counted = {"status": "ready", "set_aside": "token: 1"}
        wait_for(lambda: admin.get("/v1/me") and admin.get("/readyz").json() == counted, "it is counted")
        raw.execute("DELETE FROM tokens WHERE name = 'hidden'")
    texts = []
    for who in ("admin", "viewer", "member-a"):
        with world.client(who) as client:
            texts.append(client.get("/v1/events", params={"limit": 1000}).text)
    assert ["secret-project" in text for text in texts] == [True, False, False]


def test_the_evidence_against_a_node_names_jobs_to_those_who_see_all(world: World) -> None:
    with contextlib.closing(open_store(world.server.store)) as store:
        data = {"node": "n1", "by": "fleetune", "attempts": ["secret-name-abc123-1"]}
        store.add_events([QueueEvent(0.0, "cordon", "n1 takes nothing new: it was lost", data=data)])
    texts = []
    for who in ("admin", "viewer", "member-a", "viewer-b"):
        with world.client(who) as client:
            texts.append(client.get("/v1/events", params={"before": 2**62, "limit": 1000}).text)
    assert all("n1 takes nothing new" in text for text in texts)
    assert ["secret-name" in text for text in texts] == [True, True, False, False]


def test_the_token_of_one_attempt_opens_no_other(world: World) -> None:
    with world.client("attempt") as client:
        for job_id, attempt in ((world.job, 2), ("other-job", 1), (world.job + "-1", 1)):
            answer = client.post("/v1/driver/beat", json={"job_id": job_id, "attempt": attempt})
            assert answer.status_code == 401
        assert client.post("/v1/driver/register", json={"job_id": world.job, "attempt": 0}).status_code == 422


def test_a_driver_hears_which_queue_answers_and_one_of_another_queue_that_it_is_at_the_wrong_server(
    world: World,
) -> None:
    said = {"job_id": world.job, "attempt": 1}
    with world.client("attempt") as client, world.server.client("0" * 64, next(_addresses)) as stranger:
        queue = client.post("/v1/driver/beat", json=said).raise_for_status().json()["queue"]
        assert len(queue) == 8
        assert client.post("/v1/driver/beat", json={**said, "queue": queue}).status_code == 200
        refused = stranger.post("/v1/driver/beat", json={**said, "queue": "ffffffff"})
        assert (refused.status_code, refused.json()["error"]) == (409, "OtherQueue")
        wrong_token, wrong_shape = stranger.post("/v1/driver/beat", json=said), client.post("/v1/driver/beat", json={})
        assert [wrong_token.status_code, wrong_shape.status_code] == [401, 422]
        assert refused.json()["queue"] == wrong_token.json()["queue"] == wrong_shape.json()["queue"] == queue


def test_a_revoked_token_opens_nothing_within_two_seconds(world: World) -> None:
    with world.client("admin") as admin:
        token = admin.post("/v1/tokens", json={"name": "gone", "role": "viewer"}).raise_for_status().json()["token"]
        with world.server.client(token, next(_addresses)) as client:
            assert client.get("/v1/me").json()["name"] == "gone"
            done = world.server.run("tokens", "revoke", "gone", "--store", world.server.store)  # beside the server
            assert done.returncode == 0
            time.sleep(2.0)  # what is asked later is refused, however slow the server is
            assert client.get("/v1/me").status_code == 401
        assert token not in admin.get("/v1/tokens").text


def test_the_last_admin_cannot_be_revoked_by_mistake(world: World) -> None:
    with world.client("admin") as admin:
        answer = admin.delete("/v1/tokens/root")
        assert answer.status_code == 409
        assert admin.get("/v1/me").status_code == 200


def test_a_refusal_says_how_to_ask(world: World) -> None:
    with world.client("none") as client:
        answer = client.get("/v1/jobs")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "needs a token" in answer.json()["message"]
        # Nobody without a token learns which paths there are, or has a body read.
        assert client.get("/v1/nothing").status_code == 401
        assert client.post("/v1/jobs", content=b"{" * 100).status_code == 401
