"""What is submitted once a job has ended (`queue.on_end`): a small job of its own."""

from __future__ import annotations

from orchestrator.service.surroundings import Surroundings


def follow_up(surroundings: Surroundings, most: int = 100) -> int:
    """Called by the leader after each pass; how many were submitted. May be called twice for the same end.

    Raises:
        StoreBroken: nothing is lost; the next call goes on.
    """
    raise NotImplementedError
