"""The commands `fleetune tokens ...`, through a server or directly on its store."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from pydantic import ValidationError

from cluster.errors import InputError
from cluster.settings import fleetune_home
from cluster.text import day
from orchestrator.cli import completion as completing
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.options import Json, Url, connected, duration_s
from orchestrator.cli.output import json_list
from orchestrator.queue.records import Role

if TYPE_CHECKING:
    from orchestrator.api import TokenSent, TokenView
    from orchestrator.queue.store import Store

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Path or URL of the queue's store, to change it without a server."),
]
TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Name of its owner, shown in lists and events.")]

_BY = "somebody with access to the store (--store)"
_FIRST = (
    "This is the first token: from now on, every command needs a token, also in this shell.\n"
    "To continue here, use the token below. Running jobs are not affected."
)

app = command_group(
    name="tokens",
    help="Add, list and revoke tokens of the server. With --store, the server need not run.",
    no_args_is_help=True,
)


@app.command(epilog="Example:  fleetune tokens add anna --role member --tenant vision")
def add(
    name: TokenName,
    role: Annotated[Role, typer.Option("--role", help="What the token permits.")] = Role.MEMBER,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="T", help="Tenant of a member.", autocompletion=completing.tenant_names),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="Time until it expires, e.g. 90d or 12h [never].")
    ] = None,
    store: StoreUrl = None,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Add a token. It is printed once; the server stores only a digest."""
    from orchestrator.api import NewToken, TokenSent

    lifetime_s = None if expires is None else duration_s("--expires", expires)
    try:
        sent = TokenSent(name=name, role=role, tenant=tenant, lifetime_s=lifetime_s)
    except ValidationError as error:
        wrong = error.errors()[0]["loc"][0]
        if wrong == "lifetime_s":
            raise InputError(f"--expires {expires} is too long: leave it out for a token that never expires") from error
        if wrong == "tenant":
            raise InputError(f"--tenant {tenant!r} cannot be a tenant's name: `fleetune tenants` lists them") from error
        raise InputError(f"{name!r} cannot be a token's name: use letters, digits, '.', '_', '@', '-'") from error
    first = role is Role.ADMIN and not any(one.revoked_s is None for one in _listed(store, url, new=True))
    made = NewToken(name=name, token=_added(sent, store, url))
    if first:
        typer.echo(_FIRST, err=True)
    if json_:
        typer.echo(made.model_dump_json())
        return
    typer.echo(made.token)
    home = fleetune_home()
    typer.echo(
        f"The token is not shown again. {name} sets FLEETUNE_TOKEN to it, or writes it to a private file:\n"
        f"  (umask 077; mkdir -p {home}; cat > {home / 'token'})    # then paste it, and end with Ctrl-D",
        err=True,
    )


@app.command(name="list", epilog="Example:  fleetune tokens list --json")
def list_(store: StoreUrl = None, url: Url = None, json_: Json = False) -> None:
    """List all tokens, including revoked ones."""
    found = _listed(store, url)
    if json_:
        typer.echo(json_list(found))
    elif not found:
        typer.echo("no tokens: the server accepts only programs of its own user on its own machine")
    else:
        typer.echo(_table(found))


@app.command(epilog="Example:  fleetune tokens revoke anna")
def revoke(name: TokenName, store: StoreUrl = None, url: Url = None) -> None:
    """Revoke a token, within two seconds. Its name cannot be used again."""
    if store is not None:
        with _opened(store) as opened:
            from orchestrator.service.tokens import revoke as revoke_token

            revoke_token(opened, name, time.time(), _BY)
    else:
        from orchestrator.api import TokenView

        with connected(url) as connection:
            connection.delete(f"/v1/tokens/{quote(name, safe='')}", TokenView)
    typer.echo(f"{name} is revoked")


def _added(sent: TokenSent, store: str | None, url: str | None) -> str:
    if store is None:
        from orchestrator.api import NewToken

        with connected(url) as connection:
            return connection.post("/v1/tokens", NewToken, sent).token
    with _opened(store, new=True) as opened:
        from orchestrator.service.tokens import add

        return add(opened, sent.name, sent.role, sent.tenant, time.time(), _BY, sent.lifetime_s)


def _listed(store: str | None, url: str | None, new: bool = False) -> list[TokenView]:
    if store is None:
        from orchestrator.api import Tokens

        with connected(url) as connection:
            return list(connection.get("/v1/tokens", Tokens).tokens)
    with _opened(store, new) as opened:
        from orchestrator.service.tokens import view

        return [view(token) for token in opened.tokens()]


@contextlib.contextmanager
def _opened(url: str, new: bool = False) -> Iterator[Store]:
    """Open a store. `new`: create it if it does not exist."""
    from orchestrator.store import open_store

    if not new and "://" not in url and not os.path.exists(url):
        raise InputError(f"there is no store at {url}: give the path of the server's store")
    with contextlib.closing(open_store(url)) as store:
        yield store


def _table(found: list[TokenView]) -> str:
    from orchestrator.pages.tables import columns

    return columns(
        ("NAME", "ROLE", "TENANT", "MADE", "EXPIRES", "REVOKED"),
        [
            (one.name, one.role, one.tenant or "all", day(one.created_s), _expires(one), day(one.revoked_s))
            for one in found
        ],
    )


def _expires(token: TokenView) -> str:
    if token.expires_s is None:
        return "never"
    return f"{day(token.expires_s)}{' (expired)' if token.expires_s <= time.time() else ''}"
