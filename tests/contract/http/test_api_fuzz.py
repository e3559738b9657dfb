"""The documented API, asked with what its schema allows and much that it does not: nothing makes the server fail."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import InvalidSchema
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.problem import Problem
from orchestrator.service.context.identity import attempt_token
from orchestrator.store import open_store
from tests.support.processes import wait_for
from tests.support.server import Server, server, spec

EXAMPLES = 20  # for each route, of what is allowed and of what is not
ANSWERS_WITHIN_S = 240.0  # by itself schemathesis waits for 10 s
CHECKS = [not_a_server_error, content_type_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


@dataclass(frozen=True)
class Known:
    """What there is: an admin's token, a job, and the token of its attempt, which runs."""

    admin: str
    job_id: str
    attempt: str


@pytest.fixture(scope="module")
def known(fuzzed: Server) -> Known:
    with fuzzed.client() as client:
        job_id = client.post("/v1/jobs", json={"specs": [spec()]}).raise_for_status().json()["jobs"][0]["job_id"]
    store = open_store(fuzzed.store)
    wait_for(lambda: "driver_key" in store.facts(), "a driver was started")
    token = attempt_token(store.facts()["driver_key"], job_id, 1)
    store.close()
    return Known(fuzzed.token("root", "admin"), job_id, token)


@pytest.mark.slow
def test_nothing_that_is_sent_makes_the_server_fail(fuzzed: Server, known: Known) -> None:
    """Of each operation of the API, right and wrong requests: no answer is a failure or unlike what the schema says."""
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found)
    assert len(operations) > 25
    for operation in operations:
        for mode in GenerationMode:
            fuzz(operation, mode, known)


def fuzz(operation: Any, mode: GenerationMode, known: Known) -> None:
    token = known.attempt if operation.path.startswith("/v1/driver") else known.admin

    @seed(6)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode), booleans())
    def asked(case: schemathesis.Case[Any], of_what_there_is: bool) -> None:
        if of_what_there_is:
            lead_to_what_there_is(case, known)
        answer = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=ANSWERS_WITHIN_S)
        case.validate_response(answer, checks=CHECKS)
        with contextlib.suppress(InvalidSchema):  # schemathesis turns prefixItems into what it then refuses
            case.validate_response(answer, checks=[response_schema_conformance])
        if answer.status_code >= 400 and case.method != "HEAD":
            assert len(Problem.model_validate_json(answer.content).message) <= 10_000

    with contextlib.suppress(Unsatisfiable):  # there is nothing wrong that could be sent
        asked()


def lead_to_what_there_is(case: schemathesis.Case[Any], known: Known) -> None:
    there = {"job_id": known.job_id, "node_id": "n1", "source": "output"}
    case.path_parameters = {name: there.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if case.path.startswith(("/v1/driver", "/v1/guest")) and isinstance(case.body, dict):
        case.body = {**case.body, "job_id": known.job_id, "attempt": 1}


@pytest.mark.slow
def test_it_was_asked_a_lot_and_has_logged_no_failure(fuzzed: Server, known: Known) -> None:
    assert "Traceback" not in fuzzed.log
    with fuzzed.client(known.admin) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")
        counted = re.findall(r'_count\{.*status="(\d+)"\} (\d+)', client.get("/metrics").text)
    asked: Counter[str] = Counter()
    for status, number in counted:
        asked[status] += int(number)
    assert asked["200"] > 200 and asked["422"] > 100, asked
