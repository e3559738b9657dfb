"""Routes of tokens. A token itself is only in the answer that creates it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator import api
from orchestrator.http.routing import Admin, Name, Serving, answer, problems
from orchestrator.http.routing import router as made
from orchestrator.queue.records import Role
from orchestrator.service.tokens import add, check_revocable, view
from orchestrator.service.tokens import revoke as revoke_token


def routes(serving: Serving) -> APIRouter:
    router = made("tokens")

    @router.get("/tokens", response_model=api.Tokens, responses=problems(401, 403), summary="All tokens, also revoked")
    def tokens(caller: Admin) -> Response:
        return answer(api.Tokens(tokens=tuple(map(view, serving.store.tokens()))))

    @router.post(
        "/tokens",
        status_code=201,
        response_model=api.NewToken,
        responses=problems(400, 401, 403, 404, 409, 422),
        summary="Make a token; it is shown here only",
    )
    def make(sent: api.TokenSent, caller: Admin) -> Response:
        now_s, role = serving.now_s(), Role(sent.role)
        token = add(serving.store, sent.name, role, sent.tenant, now_s, caller.name, sent.lifetime_s)
        serving.tokens.forget()
        return answer(api.NewToken(name=sent.name, token=token), 201)

    @router.delete(
        "/tokens/{name}",
        response_model=api.TokenView,
        responses=problems(401, 403, 404, 409),
        summary="Revoke a token",
    )
    def revoke(name: Name, caller: Admin) -> Response:
        now_s = serving.now_s()
        check_revocable(serving.store, name, now_s)
        revoke_token(serving.store, name, now_s, caller.name)
        serving.tokens.forget()
        return answer(next(view(token) for token in serving.store.tokens() if token.name == name))

    return router
