"""What a queue assigns to a run in addition to its spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Assignment:
    """The slots of one attempt. The queue that assigns them knows that no other attempt drives the run.

    Attributes:
        places: node id of each worker; None lets Ray choose.
        num_workers: workers of this attempt; None means the number in the spec.
        variables: environment variables for every process of the run. They may be secret, and are never shown.
        run: root of the run if it is new; None makes a new name.
    """

    places: tuple[str, ...] | None = None
    num_workers: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    run: str | None = None
