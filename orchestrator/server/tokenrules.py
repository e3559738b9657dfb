"""Which tokens may be made and revoked: there is always an admin, as soon as there is anybody."""

from __future__ import annotations

from jobs.fields import did_you_mean
from orchestrator import api
from orchestrator.queue.errors import NameTaken, QueueError, UnknownTenant
from orchestrator.queue.records import Role, Token
from orchestrator.queue.store import Store
from orchestrator.server.auth import digest_of, new_token


class LastAdmin(QueueError):
    """Nobody could make tokens any more."""

    status = 409


def add(store: Store, name: str, role: Role, tenant: str | None, now_s: float) -> str:
    """The new token, to be shown once.

    Raises:
        QueueError: role and tenant do not go together, or the first one is no admin's.
        UnknownTenant, NameTaken.
    """
    _check(store, name, role, tenant)
    token = new_token()
    store.add_token(Token(name, digest_of(token), role, tenant, now_s))
    return token


def _check(store: Store, name: str, role: Role, tenant: str | None) -> None:
    if role is Role.ADMIN and tenant is not None:
        raise QueueError("an admin acts for all tenants: leave --tenant out, or say --role member")
    if role is Role.MEMBER and tenant is None:
        raise QueueError(
            "a member belongs to a tenant: say to which with --tenant NAME. `fleetune tenants` lists them, and "
            "`fleetune tenants set NAME` makes one"
        )
    if tenant is not None and tenant not in {one.name for one in store.tenants()}:
        hint = did_you_mean(tenant, [one.name for one in store.tenants()])
        raise UnknownTenant(f"there is no tenant {tenant!r}{hint or f': fleetune tenants set {tenant} makes it'}")
    known = store.tokens()
    if any(token.name == name for token in known):
        raise NameTaken(f"there is, or was, a token {name!r}: give this one another name")
    if role is not Role.ADMIN and not _admins(known):
        raise LastAdmin("the first token must be an admin's: as soon as there is one, nobody gets in without")


def check_revocable(store: Store, name: str) -> None:
    """Raises LastAdmin."""
    known = store.tokens()
    others = [token for token in _admins(known) if token.name != name]
    is_admin = any(token.name == name for token in _admins(known))
    if is_admin and not others:
        raise LastAdmin(
            f"{name!r} is the only admin: make another one first, or revoke it beside the server with "
            "`fleetune tokens revoke NAME --store URL`"
        )


def has_admin(store: Store) -> bool:
    return bool(_admins(store.tokens()))


def _admins(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.role is Role.ADMIN and token.revoked_s is None]


def view(token: Token) -> api.TokenView:
    return api.TokenView(
        name=token.name,
        role=token.role,
        tenant=token.tenant,
        created_s=token.created_s,
        revoked_s=token.revoked_s,
    )
