"""The commands `fleetune serve` and `fleetune tokens`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.settings import fleetune_home
from cluster.text import day
from jobs.errors import InputError
from orchestrator.cli import completion as completing
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.options import Json, Url, connected
from orchestrator.cli.output import exit_on_error, json_list

if TYPE_CHECKING:
    from orchestrator.api import TokenSent, TokenView
    from orchestrator.queue.store import Store

ServedStore = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Path of a SQLite file, or postgresql://... [queue.db in FLEETUNE_HOME]."
    ),
]
RayDashboard = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="RAY", help="Ray's dashboard, e.g. http://head:8265; auto: on this machine [no Ray]."
    ),
]
Host = Annotated[
    str, typer.Option("--host", metavar="H", help="Address to listen on; beyond loopback, add a token first.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free port.")]
ServerUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="URL at which drivers reach this server [from --host and --port]; repeat it for more servers.",
    ),
]
SharedFolders = Annotated[
    list[str] | None,
    typer.Option("--shared", metavar="PATH", help="Directory that is shared by all machines; repeatable."),
]
DriverPython = Annotated[
    str | None,
    typer.Option("--python", metavar="PATH", help="Python interpreter that runs drivers, on their nodes."),
]
ProtectedS = Annotated[
    float,
    typer.Option(
        "--protected-s",
        metavar="S",
        min=0.0,
        help="Do not preempt an attempt in its first S seconds.",
    ),
]
RegisterS = Annotated[
    float,
    typer.Option("--register-s", metavar="S", min=10.0, help="Stop a driver that has not registered after S seconds."),
]
SilentS = Annotated[
    float,
    typer.Option("--silent-s", metavar="S", min=60.0, help="Stop a driver that has sent nothing for S seconds."),
]
RetentionDays = Annotated[
    float | None,
    typer.Option(
        "--retention-days",
        metavar="D",
        min=0.0,
        max=100_000.0,
        help="Days after which ended jobs are removed; 0: never [FLEETUNE_RETENTION_DAYS, or 90].",
    ),
]
MostRaySubmitted = Annotated[
    int,
    typer.Option("--most-guests", metavar="N", min=0, help="Most jobs from `ray job submit` in the queue."),
]
AutoscalerFile = Annotated[
    str | None,
    typer.Option(
        "--autoscaler", metavar="FILE", help="Configuration of Ray's autoscaler [of the head on this machine]."
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="Accept a store restored from a backup: the nodes obey this store again."),
]
Embedded = Annotated[bool, typer.Option("--embedded", hidden=True, help="End when the last client has gone.")]
TlsCertificate = Annotated[
    str | None,
    typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM) for https."),
]
TlsKey = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Private key of the certificate (PEM).")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also print a line for each request.")]

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Path or URL of the queue's store, to change it without a server."),
]
TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Name of its owner, shown in lists and events.")]

_LONGEST_S = 1e10  # seconds; longest lifetime of a token
_BY = "somebody with access to the store (--store)"
_FIRST = (
    "This is the first token: from now on, every command needs a token, also in this shell.\n"
    "To continue here, use the token below. Running jobs are not affected."
)

tokens = command_group(
    name="tokens",
    help="Add, list and revoke tokens of the server. With --store, the server need not run.",
    no_args_is_help=True,
)


def serve(
    store: ServedStore = None,
    address: RayDashboard = None,
    host: Host = "127.0.0.1",
    port: Port = 8400,
    url: ServerUrls = None,
    shared: SharedFolders = None,
    python: DriverPython = None,
    protected: ProtectedS = 600.0,
    register: RegisterS = 600.0,
    silent: SilentS = 21600.0,
    retention: RetentionDays = None,
    most_ray_submitted: MostRaySubmitted = 250,
    autoscaler: AutoscalerFile = None,
    take_over: TakeOver = False,
    embedded: Embedded = False,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    verbose: Verbose = False,
) -> None:
    """Run the queue's server, which starts and watches jobs."""
    with exit_on_error():
        typer.echo("fleetune serve: starting ...", err=True)  # the imports that follow take seconds
        try:
            from orchestrator.server.process import Options, serve
        except ModuleNotFoundError as error:
            raise InputError(f"a server needs {error.name}: pip install 'fleetune[serve]'") from error
        serve(
            Options(
                store=store,
                address=address,
                host=host,
                port=port,
                urls=tuple(url or ()),
                shared=tuple(shared or ()),
                python=python,
                protected_s=protected,
                register_s=register,
                silent_s=silent,
                retention_days=retention,
                most_ray_submitted=most_ray_submitted,
                autoscaler=autoscaler,
                take_over=take_over,
                embedded=embedded,
                verbose=verbose,
                tls_cert=tls_cert,
                tls_key=tls_key,
            )
        )


@tokens.command(epilog="Example:  fleetune tokens add anna --role member --tenant vision")
def add(
    name: TokenName,
    role: Annotated[
        Literal["admin", "member", "viewer"], typer.Option("--role", help="What the token permits.")
    ] = "member",
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
    with exit_on_error():
        from orchestrator.api import NewToken, TokenSent
        from orchestrator.cli.quantities import duration_s

        lifetime_s = None if expires is None else duration_s("--expires", expires)
        try:
            sent = TokenSent(name=name, role=role, tenant=tenant, lifetime_s=lifetime_s)
        except ValueError as error:
            if lifetime_s is not None and lifetime_s > _LONGEST_S:
                raise InputError(
                    f"--expires {expires} is too long: leave it out for a token that never expires"
                ) from error
            raise InputError(f"{name!r} cannot be a token's name: use letters, digits, '.', '_', '@', '-'") from error
        first = role == "admin" and not any(one.revoked_s is None for one in _listed(store, url, new=True))
        if first:
            typer.echo(_FIRST, err=True)
        made = NewToken(name=name, token=_added(sent, store, url))
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


@tokens.command(name="list", epilog="Example:  fleetune tokens list --json")
def list_(store: StoreUrl = None, url: Url = None, json_: Json = False) -> None:
    """List all tokens, including revoked ones."""
    with exit_on_error():
        found = _listed(store, url)
        if json_:
            typer.echo(json_list(found))
        elif not found:
            typer.echo("no tokens: the server accepts only programs of its own user on its own machine")
        else:
            typer.echo(_table(found))


@tokens.command(epilog="Example:  fleetune tokens revoke anna")
def revoke(name: TokenName, store: StoreUrl = None, url: Url = None) -> None:
    """Revoke a token, within two seconds. Its name cannot be used again."""
    with exit_on_error():
        if store is not None:
            with _opened(store) as opened:
                from orchestrator.service.tokens import revoke as revoke_token

                revoke_token(opened, name, time.time(), _BY)
        else:
            from orchestrator.api import TokenView

            with connected(url) as connection:
                connection.delete(f"/v1/tokens/{name}", TokenView)
        typer.echo(f"{name} is revoked")


def _added(sent: TokenSent, store: str | None, url: str | None) -> str:
    if store is None:
        from orchestrator.api import NewToken

        with connected(url) as connection:
            return connection.post("/v1/tokens", NewToken, sent).token
    with _opened(store, new=True) as opened:
        from orchestrator.queue.records import Role
        from orchestrator.service.tokens import add

        return add(opened, sent.name, Role(sent.role), sent.tenant, time.time(), _BY, sent.lifetime_s)


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
