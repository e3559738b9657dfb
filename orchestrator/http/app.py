"""The ASGI app: all routes, and their documentation."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from orchestrator.http.errors import handle
from orchestrator.http.gate import Gate
from orchestrator.http.peer import LocalPeers
from orchestrator.http.routes import drivers, health, jobs, logs, nodes, ray_submitted, tenants, tokens
from orchestrator.http.routing import Serving, StrictRoute

_ABOUT = """
Submit, watch and change the jobs of a shared GPU cluster.

* All answers are JSON. The answer to a refused request is a `Problem`, which says what to do.
* Times are seconds since 1970 (UTC).
* Send a token in the header `Authorization: Bearer ...`. A server that only its own machine can reach may need none.
* Objects of other tenants get the same answers as objects that do not exist.
"""
ROUTES = (jobs, logs, nodes, tenants, tokens, drivers, ray_submitted, health)


def make_app(serving: Serving, say: Callable[[str], None]) -> ASGIApp:
    """Make the app. `say`: reports internal errors with their tracebacks."""
    app = FastAPI(
        title="Fleetune",
        description=_ABOUT,
        version=serving.version,
        docs_url=None,  # the pages load scripts from other sites, which would run with the rights of the visitor
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = StrictRoute
    for one in ROUTES:
        app.include_router(one.routes(serving))
    handle(app, serving.scrub, say, serving.context.queue)
    knows_driver = serving.context.driver_key.knows
    return Gate(app, serving.tokens, serving.scrub, serving.meters, say, LocalPeers().check, knows_driver)
