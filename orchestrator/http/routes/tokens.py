"""Routes of tokens. A token itself is only in the answer that creates it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.routing import Admin, Name, Serving, answer, documented, new_router
from orchestrator.service import tokens as service


def routes(serving: Serving) -> APIRouter:
    router = new_router("tokens")

    @router.get("/tokens", **documented(api.Tokens, "All tokens, also revoked"))
    def tokens(caller: Admin) -> Response:
        return answer(api.Tokens(tokens=tuple(map(service.view, serving.store.tokens()))))

    @router.post(
        "/tokens",
        status_code=201,
        **documented(api.NewToken, "Make a token; it is shown here only", 400, 404, 409, 415, 422),
    )
    def make(sent: api.TokenSent, caller: Admin) -> Response:
        now_s = serving.now_s()
        token = service.add(serving.store, sent.name, sent.role, sent.tenant, now_s, caller.name, sent.lifetime_s)
        serving.tokens.forget()
        return answer(api.NewToken(name=sent.name, token=token), 201)

    @router.delete("/tokens/{name}", **documented(api.TokenView, "Revoke a token", 404, 409, 422))
    def revoke(name: Name, caller: Admin) -> Response:
        now_s = serving.now_s()
        service.check_revocable(serving.store, name, now_s)
        service.revoke(serving.store, name, now_s, caller.name)
        serving.tokens.forget()
        return answer(next(service.view(token) for token in serving.store.tokens() if token.name == name))

    return router
