"""Secrets are planted wherever one could leak from, and then looked for in everything that the server says."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from orchestrator.service.context.identity import attempt_token
from orchestrator.store import open_store
from tests.support.processes import wait_for
from tests.support.server import Server, server, spec

PLANTED = 'plant"ed-secret/värde&'
FORMS = (PLANTED, json.dumps(PLANTED)[1:-1], json.dumps(PLANTED, ensure_ascii=False)[1:-1])


def everything(client: httpx.Client, job_id: str) -> dict[str, str]:
    """What is answered to all that may be asked about a job, and to wrong questions."""
    gets = [
        f"/v1/jobs/{job_id}{path}" for path in ("", "/spec", "/events", "/why", "/logs", "/logs/output", "/metrics")
    ]
    gets += ["/v1/jobs", "/v1/changes?after=1", "/v1/events", "/v1/nodes", "/v1/tenants", "/v1/usage", "/v1/tokens"]
    gets += ["/v1/server", "/v1/me", "/metrics", "/readyz", "/openapi.json", f"/v1/jobs/{PLANTED}", "/v1/jobs?limit=x"]
    found = {path: client.get(path).text for path in gets}
    sent = {
        "wrong spec": client.post("/v1/jobs", json={"specs": [{**spec(), "command": PLANTED}]}),
        "wrong field": client.post("/v1/jobs", json={"specs": [{**spec(), PLANTED: 1}]}),
        "wrong value": client.post("/v1/jobs", json={"specs": [spec(queue={"priority": PLANTED})]}),
        "wrong parent": client.post("/v1/jobs", json={"specs": [spec(queue={"after": [PLANTED]})]}),
        "wrong tenant": client.post("/v1/jobs", json={"specs": [spec(queue={"tenant": PLANTED})]}),
        "wrong secret": client.post("/v1/jobs", json={"specs": [spec(queue={"secrets": [PLANTED]})]}),
        "wrong key": client.post("/v1/jobs", json={PLANTED: [spec()]}),
        "wrong order": client.put("/v1/nodes/n1", json={"order": PLANTED}),
        "wrong node": client.put(f"/v1/nodes/{PLANTED}", json={"order": "use"}),
        "reason": client.put("/v1/nodes/n1", json={"order": "cordon", "reason": f"asks for {PLANTED}"}),
        "nodes": client.get("/v1/nodes"),
    }
    return found | {name: answer.text for name, answer in sent.items()}


def leaks(texts: dict[str, str], *secrets: str) -> list[str]:
    return [name for name, text in texts.items() if any(secret in text for secret in secrets)]


def test_a_planted_secret_is_in_no_answer_and_in_no_line_of_the_server(tmp_path: Path) -> None:
    with server(tmp_path, secrets={"PLANTED": PLANTED}) as found, found.client() as client:
        assert found.machines is not None
        wrote = f"env: {PLANTED}\n{json.dumps({'key': PLANTED})}\npostgresql://queue:Sekret@db/x\nrest\n"
        found.machines.script("leaky-*", output=wrote.encode(), exit_code=1, message=f"no {PLANTED}", runs_s=1.0)
        leaky = spec(
            "leaky", command=["echo", PLANTED], env={"API_TOKEN": "spelled-out"}, queue={"secrets": ["PLANTED"]}
        )
        job_id = submitted(client, leaky)
        wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "failed", "it failed")
        texts = everything(client, job_id)
        assert "rest" in texts[f"/v1/jobs/{job_id}/logs/output"]
        assert leaks({**texts, "log": found.log}, *FORMS, "Sekret", "spelled-out") == []
        assert "PLANTED" in found.log  # only its name


def test_tokens_are_in_no_answer_but_their_first_and_never_in_the_store(tmp_path: Path) -> None:
    with server(tmp_path) as found:
        admin = found.token("root", "admin")
        with found.client(admin) as client:
            member = client.post("/v1/tokens", json={"name": "m", "role": "member", "tenant": "default"}).json()[
                "token"
            ]
            attempt = leak_its_environment(found, client, admin)
            job_id = client.get("/v1/jobs").json()["jobs"][0]["job_id"]
            texts = everything(client, job_id) | {"log": found.log}
            assert leaks(texts, admin, member, attempt) == []
        files = {path.name: path.read_bytes().decode("latin-1") for path in found.home.iterdir() if path.is_file()}
        assert leaks(files, admin, member) == []


def leak_its_environment(found: Server, client: httpx.Client, admin: str) -> str:
    """A job that prints the token of its own attempt, and somebody's; the attempt's."""
    assert found.machines is not None
    found.machines.never_start("leaky-*")
    job_id = submitted(client, spec("leaky"))
    store = open_store(found.store)
    wait_for(lambda: "driver_key" in store.facts(), "its driver was started")
    token = attempt_token(store.facts()["driver_key"], job_id, 2)
    store.close()
    found.machines.script("leaky-*", output=f"TOKEN={token}\nexport FLEETUNE_TOKEN={admin}\n".encode())
    client.post(f"/v1/jobs/{job_id}/pause").raise_for_status()
    wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "queued", "it is paused")
    client.post(f"/v1/jobs/{job_id}/resume").raise_for_status()
    wait_for(lambda: "TOKEN=***" in client.get(f"/v1/jobs/{job_id}/logs/output").text, "it has printed it")
    return token


def submitted(client: httpx.Client, one: dict[str, object]) -> str:
    answer = client.post("/v1/jobs", json={"specs": [one]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["jobs"][0]["job_id"])


def test_a_password_of_the_store_is_not_printed(tmp_path: Path) -> None:
    found = Server(tmp_path)
    url = "postgresql://queue:Sekret@127.0.0.1:9/queue"
    for command in (("serve", "--port", "0", "--store", url), ("tokens", "list", "--store", url)):
        done = found.run(*command)
        assert done.returncode == 1
        assert "Sekret" not in done.stdout + done.stderr
        assert "postgresql://queue@127.0.0.1:9/queue" in done.stderr
