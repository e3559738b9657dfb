"""Clients whose jobs end with them: scripts that use an embedded server."""

from __future__ import annotations

from pathlib import Path

from orchestrator.service.surroundings import Surroundings


def cancel_what_the_gone_left(surroundings: Surroundings, home: Path) -> int:
    """Called by the leader after each pass; how many jobs were asked to end.

    A client lives for as long as it holds the lock (flock) of `HOME/clients/ID.lock`; the kernel lets go of it when
    the process is gone. A file that is not there means that it is gone too.

    Args:
        home: FLEETUNE_HOME.

    Raises:
        StoreBroken: nothing is lost; the next call goes on.
    """
    raise NotImplementedError
