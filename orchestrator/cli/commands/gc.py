"""The command `fleetune gc`: removes runs, checkpoints and prepared data by age and size."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from jobs.run.find import storage_root
from orchestrator.cli.options import Json, Storage, duration_s, size_bytes
from orchestrator.gc.values import Bounds, Held

_NO_SERVER = (
    "No server is known on this machine, so the runs that jobs of a queue need are not kept. If a queue uses this "
    "storage, set FLEETUNE_URL to its server. --no-server leaves this note out."
)


def gc(
    storage: Storage = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Remove runs that ended this long ago, e.g. 30d or 12h."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Remove the oldest until the rest fits, e.g. 500GB."),
    ] = None,
    keep_last: Annotated[int, typer.Option("--keep-last", metavar="N", min=0, help="Keep the N newest runs.")] = 0,
    checkpoints_only: Annotated[
        bool, typer.Option("--checkpoints-only", help="Remove checkpoints only; models, metrics and logs stay.")
    ] = False,
    prepared: Annotated[bool, typer.Option("--prepared", help="Also remove prepared data that no run uses.")] = False,
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Do not ask the server which runs its jobs need.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
    json_: Json = False,
) -> None:
    """Remove old runs and checkpoints, by age and size.

    Without --older-than and --max-size, the command lists what exists and removes nothing. With both, it removes
    what exceeds either of them. It keeps runs that are active, that have not ended and wrote something within a day,
    or that a job of the queue needs.

    --max-size removes the checkpoints of succeeded runs first, then those of other runs, then whole runs. A model is
    removed only together with its run.
    """
    from orchestrator.gc.needed import needed_by_queue, url_to_ask
    from orchestrator.gc.plan import plan_gc
    from orchestrator.gc.remove import carry_out
    from orchestrator.gc.scan import look
    from orchestrator.pages import gc as gcpage

    bounds = Bounds(
        duration_s("--older-than", older_than, or_zero=True) if older_than is not None else None,
        size_bytes(max_size) if max_size is not None else None,
        keep_last,
        checkpoints_only,
        prepared,
    )
    root, now_s = storage_root(storage), time.time()
    found = look(root, now_s)
    url = url_to_ask() if bounds.any and not no_server else None
    held = Held() if url is None else needed_by_queue(url, {run.name for run in found.runs})
    if url is None and bounds.any and not no_server:
        typer.echo(_NO_SERVER, err=True)
    plan = plan_gc(found, bounds, now_s, held)
    if not json_:
        typer.echo(gcpage.page(plan, found, bounds, now_s))
    acts = bounds.any and not dry_run
    removed = list(carry_out(root, plan)) if acts else None
    if json_:
        typer.echo(gcpage.as_json(plan, found, root, removed))
    elif removed is not None:
        typer.echo(gcpage.ending(removed))
    else:
        typer.echo("dry run: nothing was removed" if bounds.any else gcpage.OPTIONS)
    raise typer.Exit(1 if any(one.problem for one in removed or ()) else 0)
