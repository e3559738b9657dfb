"""Tokens: makes and revokes them. If there are tokens, one of them is always an admin's."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from cluster.text import format_time
from orchestrator import api
from orchestrator.queue.errors import QueueError, UnknownTenant
from orchestrator.queue.records import QueueEvent, Role, Token
from orchestrator.queue.store import Store

PREFIX: Final = "ft_"
TOKEN: Final = "token"  # kind of the events about tokens


class LastAdmin(QueueError):
    """The request would leave the server without a valid token of an admin, so nobody could make tokens."""

    status = 409


def new_token() -> str:
    """Make a random token. It is shown once; the store keeps its digest."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def add(
    store: Store, name: str, role: Role, tenant: str | None, now_s: float, by: str, lifetime_s: float | None = None
) -> str:
    """Make a token, with an event. The token is shown once.

    Args:
        by: name of the caller.
        lifetime_s: time until it expires, in seconds. None: it never expires.

    Raises:
        QueueError: role and tenant do not fit together.
        LastAdmin: it is the first token, and not an admin's.
        UnknownTenant: the tenant does not exist.
        NameTaken: the name is or was in use.
    """
    _check(store, role, tenant, now_s)
    token = new_token()
    expires_s = None if lifetime_s is None else now_s + lifetime_s
    whose = f" of tenant {tenant}" if tenant is not None else ""
    until = "" if expires_s is None else f", until {format_time(expires_s)}"
    # In one transaction: the name of a token that was written can never be used again.
    store.add_token(
        Token(name, digest_of(token), role, tenant, now_s, expires_s=expires_s),
        _event(now_s, f"{by} makes the token {name} ({role}{whose}{until})", name, by),
    )
    return token


def revoke(store: Store, name: str, now_s: float, by: str) -> None:
    """Revoke a token, with an event. Raises UnknownToken."""
    store.revoke_token(name, now_s, _event(now_s, f"{by} revokes the token {name}", name, by))


def _event(now_s: float, said: str, name: str, by: str) -> QueueEvent:
    return QueueEvent(now_s, TOKEN, said, data={"token": name, "by": by})


def _check(store: Store, role: Role, tenant: str | None, now_s: float) -> None:
    if role is Role.ADMIN and tenant is not None:
        raise QueueError("an admin acts for all tenants: leave --tenant out, or say --role member")
    if role is Role.MEMBER and tenant is None:
        raise QueueError(
            "a member belongs to a tenant: say to which with --tenant NAME. `fleetune tenants` lists them, and "
            "`fleetune tenants set NAME` creates one"
        )
    if tenant is not None and tenant not in (known := {one.name for one in store.tenants()}):
        raise UnknownTenant.among(tenant, known)
    if role is not Role.ADMIN and not has_admin(store, now_s):
        raise LastAdmin("the first token must be an admin's: once a token exists, every request needs one")


def check_revocable(store: Store, name: str, now_s: float) -> None:
    """Raise LastAdmin if a token is the only valid admin token."""
    if {token.name for token in _admins(store, now_s)} == {name}:
        raise LastAdmin(
            f"{name!r} is the only admin: make another one first, or revoke it beside the server with "
            "`fleetune tokens revoke NAME --store URL`"
        )


def has_admin(store: Store, now_s: float) -> bool:
    return bool(_admins(store, now_s))


def _admins(store: Store, now_s: float) -> list[Token]:
    """Return the valid admin tokens."""
    live = (token for token in store.tokens() if token.revoked_s is None and not token.has_expired(now_s))
    return [token for token in live if token.role is Role.ADMIN]


def view(token: Token) -> api.TokenView:
    return api.TokenView.model_validate(token, from_attributes=True)
