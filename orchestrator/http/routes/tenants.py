"""Routes of tenants and their usage."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.routing import Admin, Asker, Name, Serving, answer, documented, new_router
from orchestrator.service import tenants as service


def routes(serving: Serving) -> APIRouter:
    router = new_router("tenants")

    @router.get("/tenants", **documented(api.Tenants, "Tenants that one may see"))
    async def tenants(caller: Asker) -> Response:
        found = (await serving.slow.run(lambda: service.tenants(serving.context))).tenants
        return answer(api.Tenants(tenants=tuple(tenant for tenant in found if caller.may_see(tenant.name))))

    @router.put(
        "/tenants/{tenant}",
        **documented(api.TenantView, "Make a tenant, or change all of its settings", 400, 409, 415, 422),
    )
    def put(
        tenant: Name,
        sent: api.TenantSent,
        caller: Admin,
        version: Annotated[
            str | None, Query(max_length=100, description="As it was read: later changes are not overwritten (409).")
        ] = None,
    ) -> Response:
        found = service.put(serving.context, tenant, sent, caller.name, version)
        serving.wake()
        return answer(found)

    @router.get(
        "/usage",
        **documented(api.Usage, "GPU-hours by tenant and month; without a month, of the newest twelve", 400, 422),
    )
    async def usage(
        caller: Asker,
        month: Annotated[str | None, Query(pattern=api.MONTH, description="As 2026-11.")] = None,
        tenant: Annotated[str | None, Query(min_length=1, max_length=100)] = None,
    ) -> Response:
        if not caller.may_look(tenant):
            return answer(api.Usage(rows=()))

        def added() -> api.Usage:
            return serving.context.usage_months.usage(month, tenant or caller.tenant)

        return answer(await serving.slow.run(added))

    return router
