"""The command `fleetune serve`: the options of the queue's server."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import InputError
from cluster.imports import quick_imports


def serve(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="URL", help="Path of a SQLite file, or postgresql://... [queue.db in FLEETUNE_HOME]."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="RAY", help="Ray's dashboard, e.g. http://head:8265; auto: on this machine [no Ray]."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="H", help="Address to listen on; beyond loopback, add a token first.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8400,
    urls: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="URL at which drivers reach this server [from --host and --port]; repeat it for more servers.",
        ),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option("--shared", metavar="PATH", help="Directory that is shared by all machines; repeatable."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="Python interpreter that runs drivers, on their nodes."),
    ] = None,
    protected_s: Annotated[
        float,
        typer.Option("--protected-s", metavar="S", min=0.0, help="Do not preempt an attempt in its first S seconds."),
    ] = 600.0,
    register_s: Annotated[
        float,
        typer.Option(
            "--register-s", metavar="S", min=10.0, help="Stop a driver that has not registered after S seconds."
        ),
    ] = 600.0,
    silent_s: Annotated[
        float,
        typer.Option("--silent-s", metavar="S", min=60.0, help="Stop a driver that has sent nothing for S seconds."),
    ] = 21600.0,
    grace_s: Annotated[
        float,
        typer.Option(
            "--grace-s",
            metavar="S",
            min=10.0,
            help="Seconds that a job has to save and leave before it is killed; more if its checkpoints take long.",
        ),
    ] = 120.0,
    retention_days: Annotated[
        float | None,
        typer.Option(
            "--retention-days",
            metavar="D",
            min=0.0,
            max=100_000.0,
            help="Days after which ended jobs are removed; 0: never [FLEETUNE_RETENTION_DAYS, or 90].",
        ),
    ] = None,
    most_ray_submitted: Annotated[
        int,
        typer.Option(
            "--most-ray-submitted",
            "--most-guests",
            metavar="N",
            min=0,
            help="Most jobs of `ray job submit` in the queue.",
        ),
    ] = 250,
    autoscaler: Annotated[
        str | None,
        typer.Option(
            "--autoscaler", metavar="FILE", help="Configuration of Ray's autoscaler [of the head on this machine]."
        ),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Once, after the store was restored from a backup, or if the machines of its jobs are gone: then they "
            "count as lost.",
        ),
    ] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", hidden=True, help="End when the last client has gone.")
    ] = False,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM) for https.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help="Private key of the certificate (PEM).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print a line for each request.")] = False,
) -> None:
    """Run the queue's server, which starts and watches jobs."""
    typer.echo("fleetune serve: starting ...", err=True)  # the imports that follow take seconds
    try:
        with quick_imports():
            from orchestrator.server.process import Options, serve
    except ModuleNotFoundError as error:
        raise InputError(f"a server needs {error.name}: pip install 'fleetune[serve]'") from error
    lists = {"urls": tuple(urls or ()), "shared": tuple(shared or ())}
    serve(Options(**context.params | lists))  # the arguments have the names of the fields
