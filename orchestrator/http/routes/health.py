"""Routes about the server: whether it lives and can work, its version, and the caller."""

from __future__ import annotations

import json
from collections import Counter

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator import api
from orchestrator.http import metrics
from orchestrator.http.routing import OF_THE_GATE, Asker, Serving, answer, documented, new_router, problems
from orchestrator.queue.errors import StoreBroken


def routes(serving: Serving) -> APIRouter:
    router = new_router("server", "")
    context = serving.context

    @router.get("/healthz", response_model=dict[str, str], summary="Whether the process lives; without a token")
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    @router.get(
        "/readyz",
        response_model=dict[str, str],
        responses=problems(503),
        summary="Whether the store answers, somebody leads and the queue moves; without a token",
    )
    def readyz() -> Response:
        leader = serving.store.leader()
        if not serving.leads() and (leader is None or leader.expires_s < serving.now_s()):
            raise StoreBroken("no server leads yet: try again in a few seconds")
        if trouble := serving.trouble():
            raise StoreBroken(trouble)
        told = {"status": "ready"}
        if rows := serving.set_aside():  # counts only, since names must not be shown to all callers
            counts = sorted(Counter(row.table for row in rows).items())
            told["set_aside"] = ", ".join(f"{table}: {number}" for table, number in counts)
        return Response(json.dumps(told), media_type="application/json")

    @router.get("/metrics", response_class=Response, responses=_TEXT, summary="For Prometheus")
    async def prometheus(caller: Asker) -> Response:
        """If the token has a tenant, jobs of other tenants are left out."""
        text = await serving.slow.run(serving.meters.text)
        shown = text if caller.sees_all else metrics.of_tenant(text, caller.tenant or "")
        return Response(shown, media_type=metrics.CONTENT_TYPE)

    @router.get("/v1/server", **documented(api.Server, "What this server is"))
    def server(caller: Asker) -> Response:
        leader = serving.store.leader()
        known = leader is not None and leader.expires_s >= serving.now_s()
        return answer(
            api.Server(
                version=serving.version,
                api=api.API_VERSION,
                leads=serving.leads(),
                leader_url=leader.url if leader is not None and known else None,
                engine=context.engine,
                machine=serving.machine,
                shared=context.shared,
                retention_days=context.retention_days or None,
            )
        )

    @router.get("/v1/me", **documented(api.Me, "Whose the token is"))
    async def me(caller: Asker) -> Response:
        needed = serving.tokens.needed
        return answer(api.Me(name=caller.name, role=caller.role, tenant=caller.tenant, tokens_needed=needed))

    return router


_TEXT = {
    **problems(*OF_THE_GATE),
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text"},
}
