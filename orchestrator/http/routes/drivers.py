"""Routes of drivers; the messages are in `jobs.drivers.link.messages`. The gate refuses requests without a token."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import Response

from jobs.drivers.link.messages import Answer, Beat, Register, Registered
from orchestrator.http.auth import bearer
from orchestrator.http.routing import Serving, answer, documented, new_router
from orchestrator.service import drivers as driving

_TOKEN = HTTPBearer(scheme_name="attempt", description="Of one attempt of a job.", auto_error=False)
_OF_THE_GATE = (401, 413, 429)  # what `gate` may answer to a request with a driver's token


def routes(serving: Serving) -> APIRouter:
    router = new_router("drivers", "/v1/driver", dependencies=[Depends(_TOKEN)])
    context = serving.context

    @router.post(
        "/register",
        **documented(
            Registered, "Register a driver; the answer says what to run", 400, 409, 410, 415, 422, gate=_OF_THE_GATE
        ),
    )
    def register(sent: Register, request: Request) -> Response:
        driving.check_attempt(context, bearer(request.headers) or "", sent)
        told = driving.register(context, sent)
        serving.meters.heartbeats.inc()
        serving.wake()
        return answer(told)

    @router.post(
        "/beat",
        **documented(Answer, "A driver's heartbeat; the answer says what to do", 400, 409, 415, 422, gate=_OF_THE_GATE),
    )
    def beat(sent: Beat, request: Request) -> Response:
        driving.check_attempt(context, bearer(request.headers) or "", sent)
        told = driving.heartbeat(context, sent)
        if sent.draining:
            serving.wake()
        serving.meters.heartbeats.inc()
        return answer(told)

    return router
