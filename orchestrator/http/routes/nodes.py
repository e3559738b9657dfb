"""Routes of nodes, and of orders about them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.routing import Admin, Asker, JobId, Name, Serving, answer, documented, new_router
from orchestrator.service import nodes as service


def routes(serving: Serving) -> APIRouter:
    router = new_router("nodes")

    @router.get("/nodes", **documented(api.Nodes, "The machines, and who holds them"))
    async def nodes(caller: Asker) -> Response:
        """Jobs of other tenants are not named."""

        def look() -> api.Nodes:
            found = service.nodes(serving.context, caller)
            return found.model_copy(update={"nodes": tuple(_shown(serving, node) for node in found.nodes)})

        return answer(await serving.slow.run(look))

    @router.put(
        "/nodes/{node_id}",
        **documented(api.NodeView, "Put nothing new there, empty it, or use it again", 400, 404, 415, 422),
    )
    async def order(node_id: Name, sent: api.NodeOrderSent, caller: Admin) -> Response:
        found = await serving.slow.run(lambda: service.order(serving.context, node_id, sent, caller))
        serving.wake()
        return answer(_shown(serving, found))

    @router.post(
        "/jobs/{job_id}/release",
        **documented(api.JobView, "Close the lease of a stopping job whose driver's node is gone", 404, 409, 422),
    )
    async def release(job_id: JobId, caller: Admin) -> Response:
        found = await serving.slow.run(lambda: service.release(serving.context, serving.job(job_id, caller), caller))
        serving.wake()
        return answer(serving.view(found))

    return router


def _shown(serving: Serving, node: api.NodeView) -> api.NodeView:
    return node.model_copy(update={"reason": serving.scrub.line(node.reason)})
