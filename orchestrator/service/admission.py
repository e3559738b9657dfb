"""From specs that somebody has sent to jobs that the queue takes, or to one message with all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.queue.records import NewJob
from orchestrator.service.caller import Caller
from orchestrator.service.surroundings import Surroundings


def admit(
    surroundings: Surroundings, specs: Sequence[Mapping[str, Any]], caller: Caller, client: str | None = None
) -> list[NewJob]:
    """Jobs in the order of the specs, to be given to `Store.submit`. Nothing is written here.

    Args:
        specs: JSON, resolved by the client.
        client: `orchestrator.api.Submission.client`.

    Raises:
        InputError: of the class of what is wrong (SpecError, CapacityError, Forbidden, UnknownTenant, UnknownJob,
            ParentFailed, ...), or QueueError where several things are.
        StoreBroken: tried again later.
    """
    raise NotImplementedError
