"""The documented answers of each route are those that it can give."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fastapi import FastAPI

from orchestrator.http.app import ROUTES
from orchestrator.http.routing import OF_THE_GATE, Serving

OPEN = {"/healthz", "/readyz"}


class Anything:
    """Stands for what routes use only when they are asked."""

    def __getattr__(self, name: str) -> Any:
        return Anything()


def operations() -> list[tuple[str, dict[str, Any]]]:
    app = FastAPI()
    for one in ROUTES:
        app.include_router(one.routes(cast(Serving, Anything())))
    paths = app.openapi()["paths"]
    return [
        (f"{method.upper()} {path}", operation) for path, found in paths.items() for method, operation in found.items()
    ]


OPERATIONS = operations()


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_a_wrong_shape_is_documented_where_there_is_something_to_send(name: str, operation: dict[str, Any]) -> None:
    has_body, statuses = "requestBody" in operation, set(operation["responses"])
    assert ("422" in statuses) is (has_body or "parameters" in operation)
    assert ("415" in statuses) is has_body
    refused = [answer for status, answer in operation["responses"].items() if status >= "400"]
    schemas = [answer["content"]["application/json"]["schema"]["$ref"] for answer in refused]
    assert set(schemas) <= {"#/components/schemas/Problem"}


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_what_the_gate_answers_is_documented_on_every_route_behind_it(name: str, operation: dict[str, Any]) -> None:
    given = {int(status) for status in operation["responses"]} & set(OF_THE_GATE)
    path = name.split()[1]
    by_driver = path.startswith("/v1/driver/")
    assert given == (set() if path in OPEN else set(OF_THE_GATE) - ({403} if by_driver else set()))
